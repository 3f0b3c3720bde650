"""The results of one command as one HTML file that opens without a network, as the report does."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from vapo_verl.analysis.statistics import PairedRates, Rate
from vapo_verl.evaluation.probing.journal import PAGE_FILE
from vapo_verl.files import atomic_write
from vapo_verl.plots.html import (
    NONE,
    Table,
    content_policy,
    figures_html,
    inert_json,
    plotly_script,
    resource_text,
    table_html,
)
from vapo_verl.plots.panel import Panel


def write_page(
    folder: Path, title: str, note: str, panels: Sequence[Panel], tables: Sequence[Table]
) -> Path:
    """Write `page.html` atomically and return its path."""
    plotly, script = plotly_script(), resource_text("plots.js")
    template = (files("vapo_verl.evaluation.probing") / "result.html").read_text(encoding="utf-8")
    page = Template(template).substitute(
        policy=content_policy(plotly, script),
        title=escape(title),
        style=resource_text("page.css"),
        note=escape(note),
        figures=figures_html(panels, 0),
        tables="".join(map(table_html, tables)),
        data=inert_json({"runs": [title], "panels": [asdict(panel) for panel in panels]}),
        plotly=plotly,
        script=script,
    )
    path = folder / PAGE_FILE
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return path


def shown_rate(rate: Rate) -> str:
    """A rate with its interval and counts, for a cell of a table."""
    if rate["share"] is None:
        return NONE
    interval = f"{rate['low']:.3f} to {rate['high']:.3f}"
    return f"{rate['share']:.3f} ({interval}), {rate['num']} of {rate['of']}"


def shown_paired(found: PairedRates) -> str:
    """A paired difference of rates with its interval and McNemar's p."""
    interval = f"{shown_number(found['low'])} to {shown_number(found['high'])}"
    return f"{shown_number(found['difference'])} ({interval}), p {found['p']:.2g}"


def shown_difference(found: Mapping[str, Any]) -> str:
    """A paired difference of means with its interval and Student's p."""
    interval = f"{shown_number(found['low'])} to {shown_number(found['high'])}"
    return f"{shown_number(found['difference'])} ({interval}), p {shown_number(found['p_t'])}"


def shown_number(value: float | None) -> str:
    """Three significant digits; a dash for null."""
    return NONE if value is None else f"{value:.3g}"
