"""Chooses the claims of one image among the candidates of several answers. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vapo_verl.claims.making.likeness import MAX_SIMILARITY, are_opposite, are_same
from vapo_verl.claims.making.rules import MAX_WORDS, is_low_level, text_problem
from vapo_verl.data.claims_column import BALANCED_SHARE, CLAIMS_PER_IMAGE, Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRules:
    """What the claims of one image must be together."""

    num_claims: int = CLAIMS_PER_IMAGE
    """Half of them true; of an odd number one more is false."""
    max_words: int = MAX_WORDS
    max_low_level_share: float = 0.4
    """Largest share of claims about bare colours and counts. The paper caps them, at no number."""
    max_similarity: float = MAX_SIMILARITY

    def __post_init__(self) -> None:
        if self.num_claims < 2:
            raise ValueError(
                f"--num-claims: {self.num_claims}; give at least 2, a true and a false"
            )
        if not 0 <= self.max_low_level_share <= 1:
            raise ValueError(f"--max-low-level: {self.max_low_level_share}; give a share in [0, 1]")

    def num_wanted(self, label: bool) -> int:
        num_true = self.num_claims // 2
        return num_true if label else self.num_claims - num_true

    def num_missing(self, kept: Sequence[Claim], label: bool) -> int:
        """Claims of this label that are still to be found."""
        return self.num_wanted(label) - sum(claim.label == label for claim in kept)

    def low_level_is_full(self, kept: Sequence[Claim]) -> bool:
        """Whether no more claims about colours and counts may come in."""
        num_low = sum(is_low_level(claim.text) for claim in kept)
        return num_low >= int(self.max_low_level_share * self.num_claims)


def add_candidates(
    kept: Sequence[Claim], candidates: Iterable[Claim], rules: ClaimRules
) -> tuple[tuple[Claim, ...], Counter[str]]:
    """The claims kept so far and those of `candidates` that may join them; rejections by reason.

    Candidates about relations, text and scene come before those about colours and counts.
    """
    chosen, rejected = list(kept), Counter[str]()
    for claim in sorted(candidates, key=lambda claim: is_low_level(claim.text)):
        reason = rejection(chosen, claim, rules)
        if reason is None:
            chosen.append(claim)
        else:
            rejected[reason] += 1
    return tuple(chosen), rejected


def rejection(kept: Sequence[Claim], claim: Claim, rules: ClaimRules) -> str | None:
    """Why `claim` may not join `kept`, None when it may: a reason of `rules`, or `opposite`,
    `duplicate`, `surplus` (its label has enough claims), `low_level` (the cap is reached)."""
    if reason := text_problem(claim.text, rules.max_words):
        return reason
    if any(are_opposite(claim.text, other.text) for other in kept):
        return "opposite"
    if any(are_same(claim.text, other.text, rules.max_similarity) for other in kept):
        return "duplicate"
    if rules.num_missing(kept, claim.label) <= 0:
        return "surplus"
    if is_low_level(claim.text) and rules.low_level_is_full(kept):
        return "low_level"
    return None


def balanced(claims: Sequence[Claim]) -> tuple[Claim, ...]:
    """The first claims of each label, as many as keep the share of true ones in `BALANCED_SHARE`.

    Of claims that are all true, or all false, none: saying yes to everything would be rewarded.
    """
    low, high = BALANCED_SHARE
    smaller = min(sum(claim.label is label for claim in claims) for label in (True, False))
    cap = int(smaller * high / low + 1e-9)  # 3 false ones allow 7 true ones
    seen = Counter[bool]()
    kept = []
    for claim in claims:
        seen[claim.label] += 1
        if seen[claim.label] <= cap:
            kept.append(claim)
    return tuple(kept)
