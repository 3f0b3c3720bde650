"""Claims about a scene, structured so that their truth is computed."""

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Protocol

from vapo_verl.digits.scene import COLORS, Scene


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
    place: str
    digit: int

    @property
    def text(self) -> str:
        return f"The {self.place} digit is {self.digit}."

    @property
    def topic(self) -> tuple:
        return (self.kind, self.place)

    def holds(self, scene: Scene) -> bool:
        return scene.places[self.place].digit == self.digit


@dataclass(frozen=True, slots=True)
class ColorClaim:
    """The colour of the digit at a position."""

    kind: ClassVar[str] = "color"
    place: str
    color: str

    @property
    def text(self) -> str:
        return f"The {self.place} digit is {self.color}."

    @property
    def topic(self) -> tuple:
        return (self.kind, self.place)

    def holds(self, scene: Scene) -> bool:
        return scene.places[self.place].color == self.color


@dataclass(frozen=True, slots=True)
class LargerClaim:
    """One digit is strictly larger than another."""

    kind: ClassVar[str] = "relation"
    place: str
    other: str

    @property
    def text(self) -> str:
        return f"The {self.place} digit is larger than the {self.other} digit."

    @property
    def topic(self) -> tuple:
        return (self.kind, *sorted((self.place, self.other)))

    def holds(self, scene: Scene) -> bool:
        return scene.places[self.place].digit > scene.places[self.other].digit


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
        cells = (scene.places[place] for place in scene.lines[self.line])
        return any(cell.color == self.color and cell.digit == self.digit for cell in cells)


def all_claims(scene: Scene) -> list[Claim]:
    """All useful claims about a scene, true and false, in a fixed order and without repeats.

    False ones are plausible: a position with another digit or colour, a reversed comparison, and a
    coloured digit of the scene in the wrong line or with one attribute changed. Equal digits are
    never compared.
    """
    places = scene.places
    digits = (DigitClaim(place, digit) for place in places for digit in range(10))
    colors = (ColorClaim(place, color) for place in places for color in COLORS)
    return [*digits, *colors, *_comparisons(scene), *_presences(scene)]


def _comparisons(scene: Scene) -> list[Claim]:
    pairs = combinations(scene.places.items(), 2)
    unequal = [(first, second) for (first, a), (second, b) in pairs if a.digit != b.digit]
    return [claim for a, b in unequal for claim in (LargerClaim(a, b), LargerClaim(b, a))]


def _presences(scene: Scene) -> list[Claim]:
    shown = [(cell.color, cell.digit) for cell in scene.cells]
    swapped = [(color, digit) for color, _ in shown for _, digit in shown]
    pairs = dict.fromkeys(shown + swapped)
    return [PresenceClaim(line, *pair) for line in scene.lines for pair in pairs]
