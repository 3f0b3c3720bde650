"""Shared by the makers of questions: the form of a solved question, and reads of cells."""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vapo_verl.digits.scene import Cell, Scene


class Drawn(NamedTuple):
    """A question and its solutions."""

    text: str
    answer: int | str
    steps: Sequence[str]
    """The solution's sentences."""
    hasty_steps: Sequence[str] = ()
    """The same without re-reading cells; empty if there is no read to skip."""


Maker = Callable[[random.Random, Scene], Drawn | None]
"""Draws a question of one kind about a scene; None if it has no single answer."""


def read(scene: Scene, place: str) -> str:
    """The sentence that reads one cell: "top left is red 3."."""
    cell: Cell = scene.places[place]
    return f"{place} is {cell.color} {cell.digit}."
