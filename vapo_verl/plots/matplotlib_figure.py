"""Draw a panel with matplotlib: for trackers while a run trains, and for docs."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from vapo_verl.data.images import load_image
from vapo_verl.plots.panel import COLORS, Numbers, Panel, Series

WIDTH, HEIGHT = 640, 400
"""Pixels."""
_DPI = 100
_SOFT = "#59636e"


def picture(panel: Panel) -> Image.Image:
    """The lines of a panel in RGB; a heat map has none."""
    figure = Figure(figsize=(WIDTH / _DPI, HEIGHT / _DPI), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)  # no pyplot: its figures would pile up in the trainer
    axes = figure.add_subplot(title=panel.title, xlabel=panel.x_title, ylabel=panel.y_title)
    axes.grid(color="#d3d9e0", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    are_alike = all(series.color == 0 for series in panel.series)
    for number, series in enumerate(panel.series):
        _draw(axes, series, COLORS[(number if are_alike else series.color) % len(COLORS)])
    if panel.level is not None:
        axes.axhline(panel.level, color=_SOFT, linestyle="--", linewidth=1, label=panel.level_name)
    if panel.diagonal:
        axes.axline((0, 0), slope=1, color=_SOFT, linestyle="--", linewidth=1)
    if panel.x_title == "step":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.y_range is not None:
        axes.set_ylim(*panel.y_range)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(fontsize=8, frameon=False)
    file = io.BytesIO()
    canvas.print_png(file)
    return load_image(file.getvalue())


def _draw(axes: Axes, series: Series, color: str) -> None:
    x, y, low, high = map(_floats, (series.x, series.y, series.low, series.high))
    axes.plot(x, y, color=color, marker="o", markersize=2.5, linewidth=1.6, label=series.name)
    if not len(low):
        return
    if series.bars:
        axes.vlines(x, low, high, color=color, linewidth=1)
    else:
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)


def _floats(values: Numbers) -> np.ndarray:
    """nan for a missing value: a gap in the line."""
    return np.array(values, dtype=float)
