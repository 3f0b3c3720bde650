"""Cuts of a response: the logical boundaries nearest to given fractions of its reasoning."""

from collections.abc import Sequence
from dataclasses import dataclass

from vapo_verl.anchors.placement import logical_boundaries, reasoning_length
from vapo_verl.reward import THINK_START


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """The reasoning of a response as token positions, counted as tokens before them."""

    start: int
    """After the opening tag; 0 without one."""
    end: int
    """Before the closing tag, see :func:`vapo_verl.anchors.placement.reasoning_length`."""
    boundaries: tuple[int, ...]
    """Ascending, from `start` to `end`, both included."""


def find_reasoning(pieces: Sequence[str]) -> Reasoning:
    """Find the reasoning and its logical boundaries.

    Args:
        pieces: text of each response token, without the end-of-turn token.
    """
    end = reasoning_length(pieces)
    start = min(_opening_length(pieces), end)
    inside = (b for b in logical_boundaries(pieces) if start < b < end)
    return Reasoning(start=start, end=end, boundaries=tuple(sorted({start, *inside, end})))


def cut_positions(reasoning: Reasoning, targets: Sequence[float]) -> list[int]:
    """The boundary nearest to each fraction of the reasoning, the earlier of two; they may repeat.

    Args:
        targets: fractions in 0..1; 0 is the start of the reasoning and 1 its end.
    """
    length = reasoning.end - reasoning.start
    return [
        min(reasoning.boundaries, key=lambda b: abs(b - reasoning.start - target * length))
        for target in targets
    ]


def even_targets(num_cuts: int) -> tuple[float, ...]:
    """`num_cuts` >= 2 fractions from 0 to 1, evenly spaced: 21 of them are 0, 0.05, .. 1."""
    return tuple(round(i / (num_cuts - 1), 6) for i in range(num_cuts))


def _opening_length(pieces: Sequence[str]) -> int:
    """Tokens up to the end of an opening tag that begins the response."""
    text = ""
    for number, piece in enumerate(pieces, start=1):
        text += piece
        opening = text.lstrip()
        if opening.startswith(THINK_START):
            return number
        if not THINK_START.startswith(opening):
            return 0
    return 0
