"""The content of an image: a grid of coloured digits, with names of its positions and lines."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from types import MappingProxyType

from vapo_verl.digits.scans import ScanPool

COLORS = ("red", "green", "blue", "yellow")
_ROW_NAMES = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
_COLUMN_NAMES = {2: ("left", "right"), 3: ("left", "center", "right")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One digit of a grid."""

    digit: int
    """0..9"""
    color: str
    """One of `COLORS`."""
    scan: int
    """Number of the handwritten scan that is drawn, see `scans.load_scans`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A grid of cells; everything a question or a claim can be about."""

    rows: int
    cols: int
    cells: tuple[Cell, ...]
    """Row-major, `rows * cols` of them."""

    @property
    def places(self) -> dict[str, Cell]:
        """Cells by the name of their position, row-major: "top left", "top right", ..."""
        return dict(zip(_place_names(self.rows, self.cols), self.cells, strict=True))

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
def _place_names(rows: int, cols: int) -> tuple[str, ...]:
    return tuple(f"{row} {column}" for row in _ROW_NAMES[rows] for column in _COLUMN_NAMES[cols])


@cache
def _lines(rows: int, cols: int) -> Mapping[str, tuple[str, ...]]:
    names = _place_names(rows, cols)
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
