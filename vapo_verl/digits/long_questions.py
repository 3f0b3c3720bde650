"""Questions about all cells of a grid, whose solutions read cells until they end.

Most have several parts, and the later ones read cells a second time, so late reads matter as much
as early ones. There is no arithmetic, only positions and comparisons. The parts of an answer are
concatenated: the digits 3 and 7 and the largest, 7, are 377. The
texts use the standard questions' words.

A hasty solution lists the digits, but guesses the largest without re-reading the cells. The guess
is often incorrect, so a policy that has learnt both solutions can find that re-reading pays.
"""

import random
from collections.abc import Iterable
from typing import NamedTuple

from vapo_verl.digits.scene import Scene
from vapo_verl.digits.standard_questions import Drawn, Maker, read


class _Part(NamedTuple):
    """One part of a question."""

    reads: list[str]
    conclusion: list[str]
    """A sentence, or none where the reads are the solution."""
    answer: str


def _all_and_largest(rng: random.Random, scene: Scene) -> Drawn:
    lines = rng.sample(list(scene.lines), 2)
    parts = [_listed(scene, scene.positions), *(_largest_in(scene, line) for line in lines)]
    first, second = (f"the largest digit in the {line}" for line in lines)
    return _joined(f"What are all digits and {first} and {second}?", parts)


def _lines_and_largest(rng: random.Random, scene: Scene) -> Drawn:
    first, second, third = rng.sample(list(scene.lines), 3)
    parts = [_listed(scene, scene.lines[line]) for line in (first, second)]
    text = (
        f"What are the digits in the {first} and the {second} and the largest digit in the {third}?"
    )
    return _joined(text, [*parts, _largest_in(scene, third)])


def _line_and_largest_of_color(rng: random.Random, scene: Scene) -> Drawn:
    line, color = rng.choice(list(scene.lines)), rng.choice(scene.cells).color
    text = f"What are the digits in the {line} and the largest {color} digit?"
    return _joined(text, [_listed(scene, scene.lines[line]), _largest_of(scene, color)])


def _largest_twice(rng: random.Random, scene: Scene) -> Drawn:
    line, color = rng.choice(list(scene.lines)), rng.choice(scene.cells).color
    text = f"What is the largest digit in the {line} and the largest {color} digit?"
    return _joined(text, [_largest_in(scene, line), _largest_of(scene, color)])


def _larger_count(rng: random.Random, scene: Scene) -> Drawn:
    position = rng.choice(list(scene.positions))
    steps, count = [read(scene, position)], 0
    for other, cell in scene.positions.items():
        if other == position:
            continue
        steps.append(read(scene, other))
        if cell.digit > scene.positions[position].digit:
            count += 1
            steps.append(f"that makes {count}.")
    return Drawn(f"How many digits are larger than the {position} digit?", count, steps)


PARTS_KINDS: dict[str, Maker] = {
    "all_and_largest": _all_and_largest,
    "lines_and_largest": _lines_and_largest,
    "line_and_largest_of_color": _line_and_largest_of_color,
    "largest_twice": _largest_twice,
}
"""Makers of questions in parts, by kind."""

LONG_KINDS: dict[str, Maker] = {**PARTS_KINDS, "larger_count": _larger_count}
"""Question makers by kind."""


def _joined(text: str, parts: list[_Part]) -> Drawn:
    return Drawn(
        text,
        "".join(part.answer for part in parts),
        [step for part in parts for step in (*part.reads, *part.conclusion)],
        [step for part in parts for step in part.conclusion or part.reads],
    )


def _listed(scene: Scene, positions: Iterable[str]) -> _Part:
    positions = list(positions)
    answer = "".join(str(scene.positions[position].digit) for position in positions)
    return _Part([read(scene, position) for position in positions], [], answer)


def _largest_in(scene: Scene, line: str) -> _Part:
    listed = _listed(scene, scene.lines[line])
    return _Part(listed.reads, [f"the largest is {max(listed.answer)}."], max(listed.answer))


def _largest_of(scene: Scene, color: str) -> _Part:
    largest = max(cell.digit for cell in scene.cells if cell.color == color)
    reads = _listed(scene, scene.positions).reads
    return _Part(reads, [f"the largest {color} digit is {largest}."], str(largest))
