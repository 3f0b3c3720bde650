"""Where something is put into a response (pure)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vapo_verl.anchors.placement import ANSWER_START, REASONING_END, logical_boundaries
from vapo_verl.diagnostics.probing.cuts import Reasoning

LONGEST_STEP = 1.5
"""Of the distance of insertions: so much is written in search of a boundary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where insertions go."""

    first: int | None
    """Tokens before the first; None where the reasoning has no boundary inside it."""
    distance: int
    """Tokens from one insertion to the next, about."""

    @property
    def step(self) -> int:
        """Tokens that are written to find the place of the next insertion."""
        return math.ceil(LONGEST_STEP * self.distance)


def plan_insertions(reasoning: Reasoning, num_insertions: int) -> Plan:
    """Even places in the reasoning of the plain response, of which the first is taken."""
    length = reasoning.end - reasoning.start
    distance = length / (num_insertions + 1)
    inside = [b for b in reasoning.boundaries if reasoning.start < b < reasoning.end]
    first = min(inside, key=lambda b: abs(b - reasoning.start - distance), default=None)
    return Plan(first=first, distance=max(round(distance), 1))


def next_insertion(pieces: Sequence[str], distance: int) -> int | None:
    """Tokens of a step before the next insertion; None where its reasoning ends, or has no end of
    a clause.

    Args:
        pieces: text of each token written since the last insertion.
        distance: tokens wanted.
    """
    text = "".join(pieces)
    if REASONING_END in text or ANSWER_START in text:
        return None
    return min(logical_boundaries(pieces), key=lambda b: abs(b - distance), default=None)
