"""The report as one HTML file that opens without a network.

The page treats what a run wrote as data: JSON in a script element that no browser runs, shown as
text, or escaped.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from vapo_verl.analysis.position_curves import half_life, progress_centres, token_centres
from vapo_verl.files import atomic_write
from vapo_verl.plots.html import (
    NONE,
    Table,
    content_policy,
    figures_html,
    inert_json,
    plotly_script,
    resource_text,
    shown,
    table_html,
)
from vapo_verl.report.comparison import comparison, early_panel, early_table
from vapo_verl.report.rollout_panels import anchor_panels, attention_panels
from vapo_verl.report.run_summary import RunSummary
from vapo_verl.report.training_panels import training_panels

_PACKAGE = "vapo_verl.report"
_SCRIPTS = (("plots.js", "vapo_verl.plots"), ("explorer.js", _PACKAGE))
"""Concatenated in this order into one script."""


def write_report(out: Path, runs: Sequence[RunSummary]) -> None:
    """Write the report on one run, or on two compared, atomically."""
    page = render_report(runs)
    with atomic_write(out) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")


def render_report(runs: Sequence[RunSummary]) -> str:
    training = training_panels(runs)
    forgotten = [*attention_panels(runs), *anchor_panels(runs), early_panel(runs)]
    early = early_table(runs)
    plotly, script = plotly_script(), "\n".join(resource_text(*script) for script in _SCRIPTS)
    names = [run.name for run in runs]
    samples = [
        {"run": number, **asdict(response)}
        for number, run in enumerate(runs)
        for response in run.explorer.responses()
    ]
    data = {
        "runs": names,
        "panels": [asdict(panel) for panel in (*training, *forgotten)],
        "images": _once_each(samples),
        "samples": samples,
    }
    return Template(resource_text("report.html", _PACKAGE)).substitute(
        policy=content_policy(plotly, script),
        title=escape(" and ".join(names)),
        style=resource_text("page.css"),
        overview=table_html(overview(runs)),
        problems="".join(
            f"<p class=problem>{escape(run.name)}: {escape(problem)}</p>"
            for run in runs
            for problem in run.problems
        ),
        training=figures_html(training, 0),
        forgetting_table=table_html(forgetting(runs)),
        forgetting=figures_html(forgotten, len(training)),
        early_decision=table_html(early) if early else "",
        comparison=_comparison(runs),
        drawn=escape(_drawn(runs)),
        data=inert_json(data),
        plotly=plotly,
        script=script,
    )


def _once_each(samples: Sequence[dict[str, Any]]) -> list[str]:
    """All images, each once; samples refer to them by index."""
    indices: dict[str, int] = {}
    for sample in samples:
        sample["images"] = [indices.setdefault(uri, len(indices)) for uri in sample["images"]]
    return list(indices)


def _comparison(runs: Sequence[RunSummary]) -> str:
    if len(runs) < 2:
        return ""
    names = f"<p>A is {escape(runs[0].name)}, B is {escape(runs[1].name)} (dashed).</p>"
    tables = "".join(map(table_html, comparison(runs[0], runs[1])))
    return f"<section id=comparison><h2>Comparison</h2>{names}{tables}</section>"


def _drawn(runs: Sequence[RunSummary]) -> str:
    parts = [
        f"{run.name}: {len(run.explorer.responses())} of {run.num_responses} sampled responses,"
        f" drawn by a fixed seed, correct and incorrect ones separately"
        f" ({run.explorer.num_seen[True]} were correct)."
        for run in runs
        if run.num_responses
    ]
    return " ".join(parts) or (
        "No rollouts were kept. The trainer writes rollouts/step_*.parquet at the end of each step."
    )


def overview(runs: Sequence[RunSummary]) -> Table:
    """Contents of each run, and its last values."""
    return Table(
        title="Overview",
        header=["", *[run.name for run in runs]],
        rows=[
            ["steps logged", *[str(run.metrics.num_steps) for run in runs]],
            ["last step", *[_last_step(run) for run in runs]],
            ["rollout files", *[str(run.num_files) for run in runs]],
            ["sampled responses", *[str(run.num_responses) for run in runs]],
            *[
                [name, *[_last(run, metric) for run in runs]]
                for name, metric in (
                    ("reward, last step", "vapo/reward/total"),
                    ("accuracy, last step", "vapo/reward/accuracy"),
                    ("anchor accuracy, last step", "vapo/anchors/accuracy"),
                    ("visual attention, last step", "vapo/attention/mean"),
                )
            ],
        ],
    )


def forgetting(runs: Sequence[RunSummary]) -> Table:
    """Slope, ratio and half-lives of attention, and statistics of all anchors."""
    columns = [_forgetting_column(run) for run in runs]
    names = [name for name, _ in columns[0]]
    rows = [[name, *[column[i][1] for column in columns]] for i, name in enumerate(names)]
    return Table(
        title="Forgetting in numbers",
        header=["", *[run.name for run in runs]],
        rows=rows,
        note="Slope and late / early: median (quartiles) over prompts, each with the mean of its"
        " responses. Half-life: from the first point of the median curve to where it has fallen to"
        " half; – if it never does.",
    )


def _forgetting_column(run: RunSummary) -> list[tuple[str, str]]:
    curves, anchors = run.curves, run.anchors
    by_progress, by_token = curves.by_progress.quantile(0.5), curves.by_token.quantile(0.5)
    labels_true = anchors.num_labels_true / anchors.num_anchors if anchors.num_anchors else math.nan
    return [
        ("responses with attention", str(curves.num_responses)),
        ("slope over a response", _quartiles(run, "attention slope")),
        ("late third / early third", _quartiles(run, "attention late / early")),
        ("half-life, fraction of a response", shown(half_life(progress_centres(), by_progress))),
        ("half-life, tokens", shown(half_life(token_centres(curves.token_width), by_token))),
        ("anchors", str(anchors.num_anchors)),
        ("anchor accuracy", shown(anchors.accuracy())),
        ("true claims among them", shown(labels_true)),
        ("Brier score of p(yes)", shown(anchors.brier())),
        ("calibration error of p(yes)", shown(anchors.calibration_error())),
    ]


def _quartiles(run: RunSummary, quantity: str) -> str:
    values = list(run.prompts.means(quantity).values())
    if not values:
        return NONE
    low, middle, high = (float(each) for each in np.quantile(values, [0.25, 0.5, 0.75]))
    return f"{shown(middle)} ({shown(low)} to {shown(high)})"


def _last_step(run: RunSummary) -> str:
    steps = [max(column) for column in run.metrics.columns.values()]
    return str(max(steps)) if steps else NONE


def _last(run: RunSummary, metric: str) -> str:
    values = list(run.metrics.series(metric).values())
    return shown(values[-1]) if values else NONE
