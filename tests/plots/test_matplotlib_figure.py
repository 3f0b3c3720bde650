"""Panels drawn as pictures: every part of one is there, at its place."""

import json

import numpy as np
import pytest
from PIL import Image, ImageColor

from vapo_verl.plots.html import resource_text
from vapo_verl.plots.matplotlib_figure import HEIGHT, WIDTH, picture
from vapo_verl.plots.panel import COLORS, Panel, Series

BLUE, RED = (ImageColor.getrgb(color) for color in COLORS[:2])


def drawn(**fields) -> Image.Image:
    return picture(Panel(**{"title": "T", "x_title": "step", "y_title": "share", **fields}))


def places(image: Image.Image, color: tuple) -> np.ndarray:
    """Pixels [n, (x, y)] of about that colour."""
    close = np.abs(np.asarray(image, dtype=int) - color).max(axis=2) < 20
    return np.argwhere(close)[:, ::-1]


def test_a_rising_line_rises_and_a_second_one_has_its_own_colour():
    up = Series(name="up", x=[1, 2, 3], y=[0.0, 0.5, 1.0])
    down = Series(name="down", x=[1, 2, 3], y=[1.0, 0.5, 0.0])
    image = drawn(series=[up, down])
    assert image.size == (WIDTH, HEIGHT)
    for color, sign in ((BLUE, -1), (RED, 1)):
        slope = np.corrcoef(places(image, color).T)[0, 1]
        assert np.sign(slope) == sign and abs(slope) > 0.8


def test_a_quantity_has_its_colour_in_every_panel():
    line = Series(name="a", x=[1, 2, 3], y=[0.0, 0.5, 1.0], color=1)
    assert len(places(drawn(series=[line]), RED)) and not len(places(drawn(series=[line]), BLUE))


def test_a_step_without_a_value_is_a_gap():
    whole = drawn(series=[Series(name="a", x=[1, 2, 3, 4, 5], y=[1.0] * 5)])
    broken = drawn(series=[Series(name="a", x=[1, 2, 3, 4, 5], y=[1.0, 1.0, None, 1.0, 1.0])])
    widths = [len(np.unique(places(image, BLUE)[:, 0])) for image in (whole, broken)]
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.05)


@pytest.mark.parametrize("bars", [True, False])
def test_bounds_are_bars_or_a_band(bars):
    line = {"name": "a", "x": [0.2, 0.8], "y": [0.5, 0.5]}
    axes = {"y_range": (0.0, 1.0)}
    plain = drawn(series=[Series(**line)], **axes)
    bounded = drawn(series=[Series(**line, low=[0.2] * 2, high=[0.8] * 2, bars=bars)], **axes)
    changed = np.argwhere(np.asarray(plain) != np.asarray(bounded))
    rows, columns = changed[:, 0], changed[:, 1]
    assert rows.max() - rows.min() > HEIGHT / 3
    filled = len(np.unique(columns)) / (columns.max() - columns.min() + 1)
    assert filled < 0.1 if bars else filled == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"level": 0.5, "level_name": "chance"},
        {"diagonal": True},
        {"title": "U"},
        {"x_title": "U"},
        {"y_title": "U"},
    ],
)
def test_each_part_of_a_panel_shows(fields):
    series = [Series(name="a", x=[0.0, 1.0], y=[1.0, 0.5])]
    assert drawn(series=series, **fields) != drawn(series=series)


@pytest.mark.parametrize(
    ("x", "y"), [([1], [0.0]), ([1, 2], [None, None]), ([], []), ([1, 2], [-3e9, 5e12])]
)
def test_few_values_and_large_ones_can_be_drawn(x, y):
    assert drawn(series=[Series(name="a", x=x, y=y)]).size == (WIDTH, HEIGHT)


def test_pages_have_the_same_palette():
    """On a light ground; a page in the dark has as many others."""
    lines = resource_text("plots.js").splitlines()
    light, dark = (
        json.loads(next(line for line in lines if line.startswith(name)).split("= ")[1].rstrip(";"))
        for name in ("const LIGHT_COLORS", "const DARK_COLORS")
    )
    assert light == list(COLORS)
    assert len(dark) == len(COLORS)
