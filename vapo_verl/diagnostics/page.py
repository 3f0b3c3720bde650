"""The report as one HTML file that opens without a network.

What a run wrote is data to the page: JSON in a script element that no browser runs, put on the page
as text, or escaped. The policy in its head allows its own scripts by their hash, styles written in
place (plotly sets them), images from within, and forbids all else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from vapo_verl.diagnostics.anchor_panels import anchor_panels
from vapo_verl.diagnostics.attention_panels import attention_panels
from vapo_verl.diagnostics.comparison import comparison
from vapo_verl.diagnostics.early_panel import early_panel, early_table
from vapo_verl.diagnostics.panel import Panel
from vapo_verl.diagnostics.run_summary import RunSummary
from vapo_verl.diagnostics.tables import Table, forgetting, overview
from vapo_verl.diagnostics.training_panels import training_panels
from vapo_verl.safe_html import inert_json, policy_hash
from vapo_verl.whole_file import written_whole

_SCRIPTS = ("plots.js", "explorer.js")
"""In this order they are one script."""


def write_report(out: Path, runs: Sequence[RunSummary]) -> None:
    """Write the report on one run, or on two compared, whole or not at all."""
    page = render_report(runs)
    with written_whole(out) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")


def render_report(runs: Sequence[RunSummary]) -> str:
    from plotly.offline import get_plotlyjs  # read only here: the file has 5 MB

    training = training_panels(runs)
    forgotten = [*attention_panels(runs), *anchor_panels(runs), early_panel(runs)]
    early = early_table(runs)
    style, script, plotly = _text("report.css"), "\n".join(map(_text, _SCRIPTS)), get_plotlyjs()
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
    return Template(_text("report.html")).substitute(
        policy=_policy(plotly, script),
        title=escape(" and ".join(names)),
        style=style,
        overview=_table(overview(runs)),
        problems="".join(
            f"<p class=problem>{escape(run.name)}: {escape(problem)}</p>"
            for run in runs
            for problem in run.problems
        ),
        training=_figures(training, 0),
        forgetting_table=_table(forgetting(runs)),
        forgetting=_figures(forgotten, len(training)),
        early_decision=_table(early) if early else "",
        comparison=_comparison(runs),
        drawn=escape(_drawn(runs)),
        data=inert_json(data),
        plotly=plotly,
        script=script,
    )


def _once_each(samples: Sequence[dict[str, Any]]) -> list[str]:
    """All images, each once; those of the samples become places in this list."""
    places: dict[str, int] = {}
    for sample in samples:
        sample["images"] = [places.setdefault(uri, len(places)) for uri in sample["images"]]
    return list(places)


def _figures(panels: Sequence[Panel], first: int) -> str:
    """One box per panel; the page's script draws panel `data-panel` into it when it is seen."""
    parts = []
    for place, panel in enumerate(panels, start=first):
        drawn = panel.series or panel.heat
        body = f'<div class=plot data-panel="{place}"></div>' if drawn else ""
        if panel.missing:
            body += f"<p class=missing>{escape(panel.missing)}</p>"
        note = f"<figcaption>{escape(panel.note)}</figcaption>" if panel.note else ""
        parts.append(f"<figure><h3>{escape(panel.title)}</h3>{body}{note}</figure>")
    return "".join(parts)


def _table(table: Table) -> str:
    head = "".join(f"<th scope=col>{escape(cell)}</th>" for cell in table.header)
    body = "".join(
        f"<tr><th scope=row>{escape(row[0])}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    whole = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    shown = f"<div class=scroll tabindex=0>{whole}</div>" if table.rows else ""
    note = f"<p class=note>{escape(table.note)}</p>" if table.note else ""
    return f"<h3>{escape(table.title)}</h3>{shown}{note}"


def _comparison(runs: Sequence[RunSummary]) -> str:
    if len(runs) < 2:
        return ""
    names = f"<p>A is {escape(runs[0].name)}, B is {escape(runs[1].name)} (dashed).</p>"
    tables = "".join(map(_table, comparison(runs[0], runs[1])))
    return f"<section id=comparison><h2>Comparison</h2>{names}{tables}</section>"


def _drawn(runs: Sequence[RunSummary]) -> str:
    parts = [
        f"{run.name}: {len(run.explorer.responses())} of {run.num_responses} sampled responses,"
        f" drawn by a fixed seed, right and wrong ones apart"
        f" ({run.explorer.num_seen[True]} were right)."
        for run in runs
        if run.num_responses
    ]
    return " ".join(parts) or (
        "No rollouts were kept. The trainer writes rollouts/step_*.parquet at the end of each step."
    )


def _policy(*scripts: str) -> str:
    allowed = " ".join(map(policy_hash, scripts))
    return (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline';"
        f" script-src {allowed}; base-uri 'none'; form-action 'none'"
    )


def _text(name: str) -> str:
    return (files("vapo_verl.diagnostics") / name).read_text(encoding="utf-8")
