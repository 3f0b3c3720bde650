"""The content of an image: a grid of coloured digits, drawn from handwritten scans."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from types import MappingProxyType

import numpy as np
from PIL import Image

COLORS = ("red", "green", "blue", "yellow")
_ROW_NAMES = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
_COLUMN_NAMES = {2: ("left", "right"), 3: ("left", "center", "right")}
SPLITS = ("train", "val", "test")
_FRACTIONS = {"train": 0.7, "val": 0.1}
_SPLIT_SEED = 0
CELL_PIXELS = 28
"""Patch size 14 times spatial merge size 2."""
_GLYPH_PIXELS = 24
_MARGIN = (CELL_PIXELS - _GLYPH_PIXELS) // 2
_RGB = {
    "red": (255, 40, 40),
    "green": (40, 220, 40),
    "blue": (60, 90, 255),
    "yellow": (255, 240, 40),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One digit of a grid."""

    digit: int
    """0..9"""
    color: str
    """One of `COLORS`."""
    scan: int
    """Number of the handwritten scan that is drawn, see :func:`load_scans`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A grid of cells; everything a question or a claim can be about."""

    rows: int
    cols: int
    cells: tuple[Cell, ...]
    """Row-major, `rows * cols` of them."""

    @property
    def positions(self) -> dict[str, Cell]:
        """Cells by the name of their position, row-major: "top left", "top right", ..."""
        return dict(zip(_position_names(self.rows, self.cols), self.cells, strict=True))

    @property
    def lines(self) -> Mapping[str, tuple[str, ...]]:
        """Position names of every row and column by its name: "top row", ..., "right column"."""
        return _lines(self.rows, self.cols)

    def to_json(self) -> str:
        """Serialise to the string that `from_json` reads."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Scene:
        """Read a scene back from `to_json`'s string."""
        data = json.loads(text)
        cells = tuple(Cell(**cell) for cell in data["cells"])
        return cls(rows=data["rows"], cols=data["cols"], cells=cells)


@cache
def _position_names(rows: int, cols: int) -> tuple[str, ...]:
    return tuple(f"{row} {column}" for row in _ROW_NAMES[rows] for column in _COLUMN_NAMES[cols])


@cache
def _lines(rows: int, cols: int) -> Mapping[str, tuple[str, ...]]:
    names = _position_names(rows, cols)
    by_row = {f"{row} row": names[i * cols :][:cols] for i, row in enumerate(_ROW_NAMES[rows])}
    by_column = {f"{column} column": names[i::cols] for i, column in enumerate(_COLUMN_NAMES[cols])}
    return MappingProxyType(by_row | by_column)


def parse_grid(text: str) -> tuple[int, int]:
    """Turn "2x3" into (rows, cols) = (2, 3).

    Raises:
        ValueError: not ROWSxCOLS with both 2 or 3.
    """
    rows, _, cols = text.partition("x")
    if rows not in ("2", "3") or cols not in ("2", "3"):
        raise ValueError(f"grid={text!r}: give ROWSxCOLS with 2 or 3 of each, such as 2x3")
    return int(rows), int(cols)


def sample_scene(rng: random.Random, pool: ScanPool, rows: int, cols: int) -> Scene:
    """Draw a scene: each cell gets a uniform digit, a scan of it, and a uniform colour."""
    return Scene(
        rows=rows, cols=cols, cells=tuple(_sample_cell(rng, pool) for _ in range(rows * cols))
    )


def _sample_cell(rng: random.Random, pool: ScanPool) -> Cell:
    digit, scan = pool.sample(rng)
    return Cell(digit=digit, color=rng.choice(COLORS), scan=scan)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanPool:
    """The scans one split may draw from, grouped by the digit they show."""

    by_digit: tuple[tuple[int, ...], ...]
    """Ten tuples of scan numbers, one per digit class 0..9."""

    def sample(self, rng: random.Random) -> tuple[int, int]:
        """Draw a (digit, scan number) pair: digits uniformly, then one of the digit's scans."""
        digit = rng.randrange(10)
        return digit, rng.choice(self.by_digit[digit])


@lru_cache(maxsize=1)
def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """Return all scans (float [1797, 8, 8], ink in 0..1) and the digits they show (int [1797])."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images / 16.0, data.target


@lru_cache(maxsize=len(SPLITS))
def scan_pool(split: str) -> ScanPool:
    """Return the scans of a split: 70 % train, 10 % val, the rest test, within every digit class.

    The split does not depend on a data set's seed, so a test scan is unseen whatever seed made the
    training rows.

    Raises:
        ValueError: the split is not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; use one of {', '.join(SPLITS)}")
    _, digits = load_scans()
    return ScanPool(by_digit=tuple(_class_part(split, digits, digit) for digit in range(10)))


def _class_part(split: str, digits: np.ndarray, digit: int) -> tuple[int, ...]:
    scans = np.flatnonzero(digits == digit).tolist()
    random.Random(f"{_SPLIT_SEED}/{digit}").shuffle(scans)
    train_end = round(len(scans) * _FRACTIONS["train"])
    val_end = train_end + round(len(scans) * _FRACTIONS["val"])
    bounds = {"train": (0, train_end), "val": (train_end, val_end), "test": (val_end, len(scans))}
    start, end = bounds[split]
    return tuple(scans[start:end])


def render(scene: Scene, seed: int | str) -> Image.Image:
    """Draw a scene as an RGB image of `28 * cols` by `28 * rows` pixels.

    Args:
        scene: what to draw.
        seed: of the jitter, which moves each digit by up to two pixels inside its cell.
    """
    return Image.fromarray(render_pixels(scene, random.Random(seed)))


def render_pixels(scene: Scene, rng: random.Random) -> np.ndarray:
    """Draw a scene as uint8 [28 * rows, 28 * cols, 3]; see `render`."""
    cells = [_cell_pixels(cell, rng) for cell in scene.cells]
    grid = np.stack(cells).reshape(scene.rows, scene.cols, CELL_PIXELS, CELL_PIXELS, 3)
    return grid.swapaxes(1, 2).reshape(scene.rows * CELL_PIXELS, scene.cols * CELL_PIXELS, 3)


def png_bytes(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _cell_pixels(cell: Cell, rng: random.Random) -> np.ndarray:
    top, left = (_MARGIN + rng.randint(-_MARGIN, _MARGIN) for _ in range(2))
    pixels = np.zeros((CELL_PIXELS, CELL_PIXELS, 3), dtype=np.uint8)
    pixels[top : top + _GLYPH_PIXELS, left : left + _GLYPH_PIXELS] = _glyph(cell.scan, cell.color)
    return pixels


@cache
def _glyph(scan: int, color: str) -> np.ndarray:
    ink = (load_scans()[0][scan] * 255).astype(np.uint8)
    size = (_GLYPH_PIXELS, _GLYPH_PIXELS)
    scaled = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BILINEAR))
    return (scaled[..., None] / 255.0 * np.array(_RGB[color])).astype(np.uint8)
