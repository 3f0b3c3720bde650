"""Panels, independent of a renderer: some lines over one axis, or one heat map."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Numbers = list[float | None]
"""None where there is no value: JSON has no nan."""

COLORS = (
    *("#0b62c4", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#be185d"),
    *("#0e7490", "#57534e", "#4d7c0f", "#1e3a8a"),
)
"""The palette for light backgrounds, of pictures and of pages (``plots.js``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line, with a band or error bars where `low` and `high` are given."""

    name: str
    x: Numbers
    y: Numbers
    low: Numbers = field(default_factory=list)
    high: Numbers = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """Hover text of each point."""
    run: int = 0
    """Index of its run; the lines of the second run are dashed."""
    color: int = 0
    """Index in the palette: a quantity has the same colour in both runs."""
    bars: bool = False
    """Error bars instead of a band."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """A matrix of values [rows][columns]."""

    x: Numbers
    y: list[str]
    values: list[Numbers]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One figure."""

    title: str
    x_title: str
    y_title: str
    series: list[Series] = field(default_factory=list)
    heat: Heat | None = None
    level: float | None = None
    """A horizontal line, such as chance."""
    level_name: str = ""
    diagonal: bool = False
    """The line y = x."""
    note: str = ""
    missing: str = ""
    """Missing data of all runs or of one, and the setting that provides it."""
    y_range: tuple[float, float] | None = None


def missing_from(names: Sequence[str], series: Sequence[Series], text: str) -> str:
    """`text` if no run has a line; with its name before it if one run has none; else empty."""
    without = [name for run, name in enumerate(names) if all(line.run != run for line in series)]
    return text if len(without) == len(names) else " ".join(f"{name}: {text}" for name in without)


def numbers(values: Iterable[float | None]) -> Numbers:
    """Values for JSON: six significant digits; None for what is not finite."""
    return [
        None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
        for value in values
    ]
