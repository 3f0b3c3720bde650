"""Questions of a few lookups or one pass over the grid, each solved by reads and then a result."""

import random
from collections.abc import Callable, Iterable, Sequence
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


def read(scene: Scene, position: str) -> str:
    """The sentence that reads one cell: "top left is red 3."."""
    cell: Cell = scene.positions[position]
    return f"{position} is {cell.color} {cell.digit}."


def _line_sum(rng: random.Random, scene: Scene) -> Drawn:
    line, positions = rng.choice(list(scene.lines.items()))
    steps = [read(scene, position) for position in positions]
    digits = [scene.positions[position].digit for position in positions]
    return Drawn(f"What is the sum of the {line}?", sum(digits), steps + _running_sum(digits))


def _color_sum(rng: random.Random, scene: Scene) -> Drawn:
    color = rng.choice(scene.cells).color
    digits = [cell.digit for cell in scene.cells if cell.color == color]
    text = f"What is the sum of the {color} digits?"
    return Drawn(text, sum(digits), _read_all(scene) + _running_sum(digits))


def _line_largest(rng: random.Random, scene: Scene) -> Drawn:
    line, positions = rng.choice(list(scene.lines.items()))
    largest = max(scene.positions[position].digit for position in positions)
    steps = [*(read(scene, position) for position in positions), f"the largest is {largest}."]
    return Drawn(f"What is the largest digit in the {line}?", largest, steps)


def _color_largest(rng: random.Random, scene: Scene) -> Drawn:
    color = rng.choice(scene.cells).color
    largest = max(cell.digit for cell in scene.cells if cell.color == color)
    steps = [*_read_all(scene), f"the largest {color} digit is {largest}."]
    return Drawn(f"What is the largest {color} digit?", largest, steps)


def _parity_count(rng: random.Random, scene: Scene) -> Drawn:
    parity = rng.choice(("even", "odd"))
    steps, count = [], 0
    for position, cell in scene.positions.items():
        steps.append(read(scene, position))
        if cell.digit % 2 == (parity == "odd"):
            count += 1
            steps.append(f"that makes {count}.")
    return Drawn(f"How many digits are {parity}?", count, steps)


def _difference(rng: random.Random, scene: Scene) -> Drawn:
    first, second = rng.sample(list(scene.positions), 2)
    low, high = sorted((scene.positions[first].digit, scene.positions[second].digit))
    text = f"What is the difference between the {first} digit and the {second} digit?"
    steps = [read(scene, first), read(scene, second), f"{high}-{low}={high - low}."]
    return Drawn(text, high - low, steps)


def _largest_color_name(_: random.Random, scene: Scene) -> Drawn | None:
    largest = max(cell.digit for cell in scene.cells)
    colors = {cell.color for cell in scene.cells if cell.digit == largest}
    if len(colors) > 1:
        return None
    (color,) = colors
    steps = [*_read_all(scene), f"the largest is {largest}.", f"it is {color}."]
    return Drawn("What color is the largest digit?", color, steps)


def _read_all(scene: Scene) -> list[str]:
    return [read(scene, position) for position in scene.positions]


def _running_sum(digits: Iterable[int]) -> list[str]:
    first, *rest = digits
    steps, total = [], first
    for digit in rest:
        steps.append(f"{total}+{digit}={total + digit}.")
        total += digit
    return steps or [f"the sum is {first}."]


STANDARD_KINDS: dict[str, Maker] = {
    "line_sum": _line_sum,
    "color_sum": _color_sum,
    "line_largest": _line_largest,
    "color_largest": _color_largest,
    "parity_count": _parity_count,
    "difference": _difference,
    "largest_color_name": _largest_color_name,
}
"""Question makers by kind."""
