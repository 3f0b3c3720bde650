"""Questions about a whole grid, whose solutions go on reading cells until they end.

Most have several parts, and the later ones look at cells a second time: what is seen late matters
as much as what is seen first. There is no arithmetic to get wrong, only what is where and what is
larger. An answer is written part behind part: the digits 3 and 7 and the largest, 7, are 377. The
texts use the standard questions' words.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from vapo_verl.data.digits.scene import Scene
from vapo_verl.data.digits.solutions import Drawn, Maker, read

_Part = tuple[list[str], str]
"""Solution sentences of one part of a question, and its part of the answer."""


def _all_and_largest(rng: random.Random, scene: Scene) -> Drawn:
    lines = rng.sample(list(scene.lines), 2)
    parts = [_listed(scene, scene.places), *(_largest_in(scene, line) for line in lines)]
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
    place = rng.choice(list(scene.places))
    steps, count = [read(scene, place)], 0
    for other, cell in scene.places.items():
        if other == place:
            continue
        steps.append(read(scene, other))
        if cell.digit > scene.places[place].digit:
            count += 1
            steps.append(f"that makes {count}.")
    return f"How many digits are larger than the {place} digit?", count, steps


LONG_KINDS: dict[str, Maker] = {
    "all_and_largest": _all_and_largest,
    "lines_and_largest": _lines_and_largest,
    "line_and_largest_of_color": _line_and_largest_of_color,
    "largest_twice": _largest_twice,
    "larger_count": _larger_count,
}
"""Question makers by kind."""


def _joined(text: str, parts: list[_Part]) -> Drawn:
    steps = [step for steps, _ in parts for step in steps]
    return text, "".join(answer for _, answer in parts), steps


def _listed(scene: Scene, places: Iterable[str]) -> _Part:
    places = list(places)
    answer = "".join(str(scene.places[place].digit) for place in places)
    return [read(scene, place) for place in places], answer


def _largest_in(scene: Scene, line: str) -> _Part:
    steps, digits = _listed(scene, scene.lines[line])
    return [*steps, f"the largest is {max(digits)}."], max(digits)


def _largest_of(scene: Scene, color: str) -> _Part:
    largest = max(cell.digit for cell in scene.cells if cell.color == color)
    steps, _ = _listed(scene, scene.places)
    return [*steps, f"the largest {color} digit is {largest}."], str(largest)
