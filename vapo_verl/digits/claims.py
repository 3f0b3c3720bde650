"""Claims about a scene, whose truth is computed from it, and the draw of a row's claims."""

import random
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Protocol

from vapo_verl.digits.scene import COLORS, Cell, Scene

NUM_CLAIMS = 20
CLAIM_KINDS = ("identity", "color", "relation", "position")
_DIGIT = re.compile(r"The (\w+ \w+) digit is (\d)\.")
_COLOR = re.compile(r"The (\w+ \w+) digit is ([a-z]+)\.")
_LARGER = re.compile(r"The (\w+ \w+) digit is larger than the (\w+ \w+) digit\.")
_PRESENCE = re.compile(r"There is a (\w+) (\d) in the (\w+) (row|column)\.")
_ROWS = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
_COLUMNS = {2: ("left", "right"), 3: ("left", "center", "right")}


class Claim(Protocol):
    """One checkable statement about an image."""

    kind: ClassVar[str]
    """identity, colour, relation or position: the kind of error when the claim is false."""

    @property
    def text(self) -> str:
        """The statement as the model reads it."""

    @property
    def topic(self) -> tuple:
        """Subject of the claim; two claims of one topic determine each other."""

    def holds(self, scene: Scene) -> bool:
        """Whether the claim is true of the scene."""


@dataclass(frozen=True, slots=True)
class DigitClaim:
    """The digit at a position."""

    kind: ClassVar[str] = "identity"
    position: str
    digit: int

    @property
    def text(self) -> str:
        return f"The {self.position} digit is {self.digit}."

    @property
    def topic(self) -> tuple:
        return (self.kind, self.position)

    def holds(self, scene: Scene) -> bool:
        return scene.positions[self.position].digit == self.digit


@dataclass(frozen=True, slots=True)
class ColorClaim:
    """The colour of the digit at a position."""

    kind: ClassVar[str] = "color"
    position: str
    color: str

    @property
    def text(self) -> str:
        return f"The {self.position} digit is {self.color}."

    @property
    def topic(self) -> tuple:
        return (self.kind, self.position)

    def holds(self, scene: Scene) -> bool:
        return scene.positions[self.position].color == self.color


@dataclass(frozen=True, slots=True)
class LargerClaim:
    """One digit is strictly larger than another."""

    kind: ClassVar[str] = "relation"
    position: str
    other: str

    @property
    def text(self) -> str:
        return f"The {self.position} digit is larger than the {self.other} digit."

    @property
    def topic(self) -> tuple:
        return (self.kind, *sorted((self.position, self.other)))

    def holds(self, scene: Scene) -> bool:
        return scene.positions[self.position].digit > scene.positions[self.other].digit


@dataclass(frozen=True, slots=True)
class PresenceClaim:
    """A row or column holds a certain coloured digit."""

    kind: ClassVar[str] = "position"
    line: str
    color: str
    digit: int

    @property
    def text(self) -> str:
        return f"There is a {self.color} {self.digit} in the {self.line}."

    @property
    def topic(self) -> tuple:
        return (self.kind, self.line, self.color, self.digit)

    def holds(self, scene: Scene) -> bool:
        cells = (scene.positions[position] for position in scene.lines[self.line])
        return any(cell.color == self.color and cell.digit == self.digit for cell in cells)


def all_claims(scene: Scene) -> list[Claim]:
    """All useful claims about a scene, true and false, in a fixed order and without repeats.

    False ones are plausible: a position with another digit or colour, a reversed comparison, and a
    coloured digit of the scene in the wrong line or with one attribute changed. Equal digits are
    never compared.
    """
    positions = scene.positions
    digits = (DigitClaim(position, digit) for position in positions for digit in range(10))
    colors = (ColorClaim(position, color) for position in positions for color in COLORS)
    return [*digits, *colors, *_comparisons(scene), *_presences(scene)]


def _comparisons(scene: Scene) -> list[Claim]:
    pairs = combinations(scene.positions.items(), 2)
    unequal = [(first, second) for (first, a), (second, b) in pairs if a.digit != b.digit]
    return [claim for a, b in unequal for claim in (LargerClaim(a, b), LargerClaim(b, a))]


def _presences(scene: Scene) -> list[Claim]:
    shown = [(cell.color, cell.digit) for cell in scene.cells]
    swapped = [(color, digit) for color, _ in shown for _, digit in shown]
    pairs = dict.fromkeys(shown + swapped)
    return [PresenceClaim(line, *pair) for line in scene.lines for pair in pairs]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledClaim:
    """A claim with its truth."""

    claim: Claim
    label: bool


def sample_claims(
    rng: random.Random,
    scene: Scene,
    num_claims: int = NUM_CLAIMS,
    kinds: Collection[str] | None = None,
) -> tuple[LabeledClaim, ...]:
    """Draw distinct claims about a scene in random order, half of them true.

    True and false claims are drawn in turn, cycling through the four kinds. A topic is used
    again only when no other is left: "top left is 3" and "top left is 5" rarely occur together.

    Args:
        rng: source of randomness.
        scene: the only thing the claims depend on; never the question.
        num_claims: even; every grid has room for 20 of all kinds, and for 8 of any two.
        kinds: kinds to draw from; all four by default.
    """
    assert num_claims % 2 == 0
    pools = {label: _Pool(rng, scene, label, kinds) for label in (True, False)}
    topics: set[tuple] = set()
    chosen = []
    for number in range(num_claims):
        label = number % 2 == 0
        claim = pools[label].draw(topics)
        topics.add(claim.topic)
        chosen.append(LabeledClaim(claim=claim, label=label))
    rng.shuffle(chosen)
    return tuple(chosen)


class _Pool:
    """The claims of one truth value, kept by kind and drawn kind by kind."""

    def __init__(
        self, rng: random.Random, scene: Scene, label: bool, kinds: Collection[str] | None
    ):
        self._by_kind: dict[str, list[Claim]] = {}
        for claim in all_claims(scene):
            if claim.holds(scene) == label and (kinds is None or claim.kind in kinds):
                self._by_kind.setdefault(claim.kind, []).append(claim)
        for claims in self._by_kind.values():
            rng.shuffle(claims)
        self._turn = list(self._by_kind)
        rng.shuffle(self._turn)

    def draw(self, used_topics: set[tuple]) -> Claim:
        """Take a claim of the next kind, with a fresh topic if any kind has one."""
        for kind in self._turn:
            fresh = _first_fresh(self._by_kind[kind], used_topics)
            if fresh is not None:
                return self._take(kind, fresh)
        kind = next(kind for kind in self._turn if self._by_kind[kind])
        return self._take(kind, self._by_kind[kind][-1])

    def _take(self, kind: str, claim: Claim) -> Claim:
        self._by_kind[kind].remove(claim)
        self._turn.remove(kind)
        self._turn.append(kind)
        return claim


def _first_fresh(claims: Iterable[Claim], used_topics: set[tuple]) -> Claim | None:
    return next((claim for claim in claims if claim.topic not in used_topics), None)


def judge(claim: str, scene: Scene) -> bool:
    """Say whether a claim, given as text, is true of a scene.

    Shares no code with the claim classes, so that each can be checked by the other.

    Raises:
        ValueError: the text is not a claim of the digits world, or its position is missing.
    """
    if match := _DIGIT.fullmatch(claim):
        return _cell(scene, match[1]).digit == int(match[2])
    if match := _COLOR.fullmatch(claim):
        return _cell(scene, match[1]).color == match[2]
    if match := _LARGER.fullmatch(claim):
        return _cell(scene, match[1]).digit > _cell(scene, match[2]).digit
    if match := _PRESENCE.fullmatch(claim):
        wanted = (match[1], int(match[2]))
        return wanted in [(cell.color, cell.digit) for cell in _line(scene, match[3], match[4])]
    raise ValueError(
        f"claim={claim!r} is not a sentence of the digits world; pass a row's claim text unchanged"
    )


def _cell(scene: Scene, position: str) -> Cell:
    row, column = position.split()
    row_index = _index(_ROWS[scene.rows], row)
    return scene.cells[row_index * scene.cols + _index(_COLUMNS[scene.cols], column)]


def _line(scene: Scene, name: str, axis: str) -> tuple[Cell, ...]:
    if axis == "row":
        start = _index(_ROWS[scene.rows], name) * scene.cols
        return scene.cells[start : start + scene.cols]
    return scene.cells[_index(_COLUMNS[scene.cols], name) :: scene.cols]


def _index(names: tuple[str, ...], name: str) -> int:
    if name not in names:
        raise ValueError(f"position={name!r} is not in this grid; it has {', '.join(names)}")
    return names.index(name)
