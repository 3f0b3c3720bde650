"""Assign claims to cuts of a response."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from vapo_verl.anchors.placement import logical_boundaries, place, reasoning_length
from vapo_verl.anchors.probe import Anchor
from vapo_verl.data.claims_column import Claim


def plan_anchors(
    pieces: Sequence[str],
    claims: Sequence[Claim],
    *,
    num_anchors: int,
    placement: str,
    min_gap: int,
    rng: np.random.Generator,
    paired: bool = False,
) -> list[Anchor]:
    """Pair K claims, drawn without replacement, with K cuts of one response.

    Args:
        pieces: text of each response token, without the end-of-turn token; length T.
        claims: the row's claims; with fewer than ``num_anchors`` all of them are used.
        num_anchors: K.
        placement: see :func:`vapo_verl.anchors.placement.place`.
        min_gap: minimum distance between two cuts, in tokens.
        rng: source of every draw here; see :class:`vapo_verl.anchors.plan.SampleKey`.
        paired: the siblings' generators are equal (:meth:`SampleKey.group_generator`), so that they
            get the same claims in the same order; ``random`` then cuts all of them at the same
            fractions of their reasoning, as ``relative``.

    Returns:
        Anchors by ascending position; empty for an empty response or a row without claims.
    """
    count = min(num_anchors, len(claims))
    if not pieces or count == 0:
        return []
    drawn = [claims[i] for i in rng.choice(len(claims), size=count, replace=False)]
    end = reasoning_length(pieces) or len(pieces)
    if paired and placement == "random":
        placement = "relative"
    cuts = place(
        logical_boundaries(pieces), count, end=end, placement=placement, min_gap=min_gap, rng=rng
    )
    return [
        Anchor(position=position, claim=claim.text, label=claim.label, own_boundary=own)
        for (position, own), claim in zip(cuts, drawn, strict=True)
    ]


def token_texts(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    """Text of each token by itself; a process decodes an id once."""
    known = _known_texts(tokenizer)
    for token_id in {*token_ids}.difference(known):
        known[token_id] = tokenizer.decode([token_id])
    return [known[token_id] for token_id in token_ids]


@cache
def _known_texts(tokenizer: Any) -> dict[int, str]:
    """Text by token id; all of a vocabulary of 150,000 are about 20 MB."""
    del tokenizer
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleKey:
    """One response of a run."""

    seed: int
    step: int
    prompt_uid: str
    """Names the prompt across restarts of the run."""
    sample: int
    """Index of the response within its group."""

    def generator(self, purpose: str) -> np.random.Generator:
        """A separate generator for each purpose of this response."""
        return np.random.default_rng(_entropy(self._prompt, self.sample, purpose))

    def group_generator(self, purpose: str) -> np.random.Generator:
        """The same generator for all responses to this prompt in this step."""
        return np.random.default_rng(_entropy(self._prompt, "group", purpose))

    def sampling_seed(self) -> int:
        """Seed of the engine's token sampling, below 2**31."""
        return _entropy(self._prompt, self.sample, "sampling")[0] % 2**31

    @property
    def _prompt(self) -> str:
        return f"{self.seed}/{self.step}/{self.prompt_uid}"


def _entropy(*parts: object) -> list[int]:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 32, 4)]
