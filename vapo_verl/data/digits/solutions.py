"""What makers of questions share: the form of a solved question, and reading a cell."""

from __future__ import annotations

import random
from collections.abc import Callable

from vapo_verl.data.digits.scene import Cell, Scene

Drawn = tuple[str, "int | str", list[str]]
"""Question text, answer and solution sentences."""

Maker = Callable[[random.Random, Scene], Drawn | None]
"""Draws a question of one kind about a scene; None where it has no single answer."""


def read(scene: Scene, place: str) -> str:
    """The sentence that reads one cell: "top left is red 3."."""
    cell: Cell = scene.places[place]
    return f"{place} is {cell.color} {cell.digit}."
