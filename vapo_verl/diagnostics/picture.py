"""A panel as a picture, drawn without a browser: what trackers show while a run trains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from PIL import Image, ImageColor, ImageDraw, ImageFont

from vapo_verl.diagnostics.panel import Panel, Series

Point = tuple[float, float]

WIDTH, HEIGHT = 640, 400
"""Pixels."""
_SCALE = 2
"""Drawn larger and scaled down, for smooth lines."""
_LEFT, _TOP, _RIGHT, _BOTTOM = 60, 62, 16, 44
_TEXT, _SOFT, _GRID = "#1b1f24", "#59636e", "#d3d9e0"
_COLORS = ("#0b62c4", "#c2410c", "#15803d", "#7e22ce")
_NUM_TICKS = 6


def picture(panel: Panel) -> Image.Image:
    """The lines of a panel in RGB; a heat map has none."""
    return _Drawing(panel).image()


class _Drawing:
    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._x_range, self._y_range = _x_range(panel), _y_range(panel)
        self._canvas = Image.new("RGB", (WIDTH * _SCALE, HEIGHT * _SCALE), "white")
        self._draw = ImageDraw.Draw(self._canvas, "RGBA")  # so that bands let lines through

    def image(self) -> Image.Image:
        self._axes()
        self._legend()
        self._reference_lines()
        for place, series in enumerate(self._panel.series):
            self._line(series, _COLORS[place % len(_COLORS)])
        return self._canvas.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)

    def _at(self, x: float, y: float) -> Point:
        """Place of a value on the canvas."""
        (x_low, x_high), (y_low, y_high) = self._x_range, self._y_range
        across = _LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)
        down = HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM)
        return across * _SCALE, down * _SCALE

    def _write(
        self, place: Point, text: str, anchor: str, color: str = _TEXT, size: int = 12
    ) -> None:
        font = ImageFont.load_default(size * _SCALE)
        self._draw.text(place, text, fill=color, font=font, anchor=anchor)

    def _axes(self) -> None:
        panel, (x_low, x_high), (y_low, y_high) = self._panel, self._x_range, self._y_range
        gap = 6 * _SCALE
        for y in _ticks(y_low, y_high):
            left, height = self._at(x_low, y)
            self._draw.line([(left, height), self._at(x_high, y)], fill=_GRID, width=_SCALE)
            self._write((left - gap, height), f"{y:.4g}", "rm", _SOFT)
        for x in _ticks(x_low, x_high, smallest=1.0 if panel.x_title == "step" else 0.0):
            across, bottom = self._at(x, y_low)
            self._draw.line(
                [(across, bottom), (across, bottom + gap / 2)], fill=_SOFT, width=_SCALE
            )
            self._write((across, bottom + gap), f"{x:.4g}", "mt", _SOFT)
        self._write((_LEFT * _SCALE, 8 * _SCALE), panel.title, "lt", size=15)
        self._write((gap, 32 * _SCALE), panel.y_title, "lt", _SOFT)
        middle = (_LEFT + WIDTH - _RIGHT) / 2 * _SCALE
        self._write((middle, (HEIGHT - 4) * _SCALE), panel.x_title, "mb", _SOFT)

    def _legend(self) -> None:
        if len(self._panel.series) < 2:
            return
        place = (WIDTH - _RIGHT) * _SCALE
        for i, series in reversed(list(enumerate(self._panel.series))):
            self._write((place, 46 * _SCALE), series.name, "rs", _COLORS[i % len(_COLORS)])
            place -= int(ImageFont.load_default(12 * _SCALE).getlength(series.name + "    "))

    def _reference_lines(self) -> None:
        panel, (x_low, x_high) = self._panel, self._x_range
        if panel.level is not None:
            self._dashed(self._at(x_low, panel.level), self._at(x_high, panel.level))
            self._write(self._at(x_high, panel.level), panel.level_name, "rb", _SOFT, 11)
        if panel.diagonal:
            self._dashed(self._at(0, 0), self._at(1, 1))

    def _dashed(self, start: Point, end: Point) -> None:
        dash = 4 * _SCALE
        steps = int(math.dist(start, end) / dash)
        points = [
            (start[0] + (end[0] - start[0]) * i / steps, start[1] + (end[1] - start[1]) * i / steps)
            for i in range(steps + 1)
        ]
        for one, other in zip(points[::2], points[1::2], strict=False):
            self._draw.line([one, other], fill=_SOFT, width=_SCALE)

    def _line(self, series: Series, color: str) -> None:
        known = [(x, y) for x, y in zip(series.x, series.y, strict=True) if x is not None]
        for part in _known_parts(known):
            self._draw.line([self._at(x, y) for x, y in part], fill=color, width=2 * _SCALE)
            for x, y in part:
                across, down = self._at(x, y)
                self._draw.circle((across, down), 2.5 * _SCALE, fill=color)
        intervals = [
            (x, low, high)
            for x, low, high in zip(series.x, series.low, series.high, strict=False)  # or no bounds
            if x is not None and low is not None and high is not None
        ]
        if series.bars:
            for x, low, high in intervals:
                self._draw.line([self._at(x, low), self._at(x, high)], fill=color, width=_SCALE)
        elif len(intervals) > 1:
            upper = [self._at(x, high) for x, _, high in intervals]
            lower = [self._at(x, low) for x, low, _ in reversed(intervals)]
            self._draw.polygon(upper + lower, fill=(*ImageColor.getrgb(color), 45))


def _known_parts(points: Sequence[tuple[float, float | None]]) -> Iterator[list[Point]]:
    """Runs of neighbouring points that have a value."""
    part: list[Point] = []
    for x, y in points:
        if y is None:
            yield part
            part = []
        else:
            part.append((x, y))
    yield part


def _x_range(panel: Panel) -> tuple[float, float]:
    low, high = _range(x for series in panel.series for x in series.x)
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def _y_range(panel: Panel) -> tuple[float, float]:
    if panel.y_range is not None:
        return panel.y_range
    values = [v for s in panel.series for v in (*s.y, *s.low, *s.high)]
    low, high = _range([*values, panel.level])
    return (0.0 if low > 0 else low), high


def _range(values: Iterable[float | None]) -> tuple[float, float]:
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float, smallest: float = 0.0) -> list[float]:
    """Round numbers between the two: multiples of 1, 2 or 5 times a power of ten."""
    raw = max((high - low) / _NUM_TICKS, smallest)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
