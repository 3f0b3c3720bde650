"""Which claim is asked at which cut of a response."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vapo_verl.anchors.placement import logical_boundaries, place, reasoning_length
from vapo_verl.anchors.types import Anchor
from vapo_verl.data.claims_column import Claim


def plan_anchors(
    pieces: Sequence[str],
    claims: Sequence[Claim],
    *,
    num_anchors: int,
    placement: str,
    min_gap: int,
    rng: np.random.Generator,
) -> list[Anchor]:
    """Pair K claims, drawn without replacement, with K cuts of one response.

    Args:
        pieces: text of each response token, without the end-of-turn token; length T.
        claims: the row's claims; with fewer than ``num_anchors`` all of them are used.
        num_anchors: K.
        placement: see :func:`vapo_verl.anchors.placement.place`.
        min_gap: smallest distance of two cuts, in tokens.
        rng: source of every draw here; see :class:`vapo_verl.anchors.seeding.SampleKey`.

    Returns:
        Anchors by ascending position; none for an empty response or a row without claims.
    """
    count = min(num_anchors, len(claims))
    if not pieces or count == 0:
        return []
    drawn = [claims[i] for i in rng.choice(len(claims), size=count, replace=False)]
    end = reasoning_length(pieces) or len(pieces)
    cuts = place(
        logical_boundaries(pieces), count, end=end, placement=placement, min_gap=min_gap, rng=rng
    )
    return [
        Anchor(position=position, claim=claim.text, label=claim.label, own_boundary=own)
        for (position, own), claim in zip(cuts, drawn, strict=True)
    ]
