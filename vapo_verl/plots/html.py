"""Parts of self-contained HTML pages: figures, tables, untrusted data and the content policy."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from vapo_verl.plots.panel import Panel
from vapo_verl.run_folder import MissingPackage

NONE = "–"


def figures_html(panels: Sequence[Panel], first: int) -> str:
    """One box per panel; the page's script draws panel `data-panel` when the box is visible."""
    parts = []
    for number, panel in enumerate(panels, start=first):
        drawn = panel.series or panel.heat
        body = f'<div class=plot data-panel="{number}"></div>' if drawn else ""
        if panel.missing:
            body += f"<p class=missing>{escape(panel.missing)}</p>"
        note = f"<figcaption>{escape(panel.note)}</figcaption>" if panel.note else ""
        parts.append(f"<figure><h3>{escape(panel.title)}</h3>{body}{note}</figure>")
    return "".join(parts)


def table_html(table: Table) -> str:
    """The table with its title and note."""
    head = "".join(f"<th scope=col>{escape(cell)}</th>" for cell in table.header)
    body = "".join(
        f"<tr><th scope=row>{escape(row[0])}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    markup = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    shown = f"<div class=scroll tabindex=0>{markup}</div>" if table.rows else ""
    note = f"<p class=note>{escape(table.note)}</p>" if table.note else ""
    return f"<h3>{escape(table.title)}</h3>{shown}{note}"


def content_policy(*scripts: str) -> str:
    """Allow the page's scripts by their hash, inline styles (plotly sets them) and embedded
    images, and nothing else."""
    allowed = " ".join(map(policy_hash, scripts))
    return (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline';"
        f" script-src {allowed}; base-uri 'none'; form-action 'none'"
    )


def plotly_script() -> str:
    """plotly.js, embedded in a page to draw its figures.

    Raises:
        MissingPackage: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs  # read only here: the file has 5 MB
    except ModuleNotFoundError as error:
        raise MissingPackage("plotly is not installed; `pip install plotly`") from error
    return get_plotlyjs()


def resource_text(name: str, package: str = "vapo_verl.plots") -> str:
    """Text of a file of this package, or of another."""
    return (files(package) / name).read_text(encoding="utf-8")


def inert_json(value: object) -> str:
    """JSON that cannot end its script element, nor begin a comment or an entity."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def policy_hash(text: str) -> str:
    """Source expression that allows this script or style in a Content-Security-Policy."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Text in rows and columns; the page escapes it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


def shown(value: float, digits: int = 3) -> str:
    """`digits` significant digits, and all before the point; a dash for non-finite values."""
    if not math.isfinite(value):
        return NONE
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.{digits}g}"
