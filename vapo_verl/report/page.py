"""The report as one HTML file that opens without a network.

What a run wrote is data to the page: JSON in a script element that no browser runs, put on the page
as text, or escaped.
"""

from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from vapo_verl.files import atomic_write
from vapo_verl.plots.html import (
    content_policy,
    figures_html,
    inert_json,
    plotly_script,
    resource_text,
    table_html,
)
from vapo_verl.report.anchor_panels import anchor_panels
from vapo_verl.report.attention_panels import attention_panels
from vapo_verl.report.comparison import comparison
from vapo_verl.report.early_panel import early_panel, early_table
from vapo_verl.report.run_summary import RunSummary
from vapo_verl.report.tables import forgetting, overview
from vapo_verl.report.training_panels import training_panels

_PACKAGE = "vapo_verl.report"
_SCRIPTS = (("plots.js", "vapo_verl.plots"), ("explorer.js", _PACKAGE))
"""In this order they are one script."""


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
        {"run": place, **asdict(response)}
        for place, run in enumerate(runs)
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
    places: dict[str, int] = {}
    for sample in samples:
        sample["images"] = [places.setdefault(uri, len(places)) for uri in sample["images"]]
    return list(places)


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
