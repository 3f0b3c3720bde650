"""Choose a row's claims: half true and half false, spread over kinds and topics."""

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from vapo_verl.digits.claims import Claim, all_claims
from vapo_verl.digits.scene import Scene

NUM_CLAIMS = 20


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
