"""Questions about a scene, each with its answer and a solution that reads several cells."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vapo_verl.digits.scene import Cell, Scene
from vapo_verl.reward import BOX, THINK_END, THINK_START


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question with one verifiable answer."""

    kind: str
    """A key of its set in `QUESTION_SETS`."""
    text: str
    answer: str
    """An integer, a row of digits, or a colour word for `largest_color_name`."""
    steps: tuple[str, ...]
    """The solution in sentences, each ending in a full stop; for supervised warm-up only."""
    hasty_steps: tuple[str, ...] = ()
    """The same without re-reading cells; empty if there is no read to skip."""

    @property
    def response(self) -> str:
        """The solution in the format the reward checks: `<think>...</think>\\boxed{...}`."""
        return self._answered(self.steps)

    @property
    def hasty_response(self) -> str:
        """The hasty solution in that format; `response` if there is none."""
        return self._answered(self.hasty_steps or self.steps)

    def _answered(self, steps: tuple[str, ...]) -> str:
        return f"{THINK_START}{' '.join(steps)}{THINK_END}{BOX}{{{self.answer}}}"


def sample_question(rng: random.Random, scene: Scene, question_set: str = "standard") -> Question:
    """Draw a question of a uniformly chosen kind of the set that has a single answer in this scene.

    Raises:
        ValueError: the set is not one of `QUESTION_SETS`.
    """
    kinds = question_kinds(question_set)
    while True:
        kind = rng.choice(tuple(kinds))
        drawn = kinds[kind](rng, scene)
        if drawn is not None:
            return Question(
                kind=kind,
                text=drawn.text,
                answer=str(drawn.answer),
                steps=tuple(drawn.steps),
                hasty_steps=tuple(drawn.hasty_steps),
            )


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


def question_kinds(question_set: str) -> dict[str, Maker]:
    """Return a question set's makers by kind.

    Raises:
        ValueError: the set is not one of `QUESTION_SETS`.
    """
    if question_set not in QUESTION_SETS:
        known = ", ".join(QUESTION_SETS)
        raise ValueError(f"questions={question_set!r} is unknown; use one of {known}")
    return QUESTION_SETS[question_set]


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


# Questions about all cells of a grid, whose solutions read cells until they end.
#
# Most have several parts, and the later ones read cells a second time, so late reads matter as much
# as early ones. There is no arithmetic, only positions and comparisons. The parts of an answer are
# concatenated: the digits 3 and 7 and the largest, 7, are 377. The texts use the words of the short
# questions.
#
# A hasty solution lists the digits, but guesses the largest without re-reading the cells. The guess
# is often incorrect, so a policy that has learnt both solutions can find that re-reading pays.


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


def _line_and_largest(rng: random.Random, scene: Scene) -> Drawn:
    first, second = rng.sample(list(scene.lines), 2)
    text = f"What are the digits in the {first} and the largest digit in the {second}?"
    return _joined(text, [_listed(scene, scene.lines[first]), _largest_in(scene, second)])


def _two_largest(rng: random.Random, scene: Scene) -> Drawn:
    first, second = rng.sample(list(scene.lines), 2)
    text = f"What is the largest digit in the {first} and the largest digit in the {second}?"
    return _joined(text, [_largest_in(scene, first), _largest_in(scene, second)])


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
LINE_KINDS: dict[str, Maker] = {
    "line_and_largest": _line_and_largest,
    "two_largest": _two_largest,
}
"""Makers of questions about two lines, which leave a third or more of a grid unread."""

QUESTION_SETS: dict[str, dict[str, Maker]] = {
    "standard": STANDARD_KINDS,
    "long": LONG_KINDS,
    "parts": PARTS_KINDS,
    "lines": LINE_KINDS,
}
"""Makers by kind of every question set."""


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
