"""How far votes agree with the generator's labels, and with each other. Pure."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from vapo_verl.analysis.statistics import kappa_of_counts
from vapo_verl.claims.shards.record import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Figures over many verdicts; None where there is nothing to divide by."""

    num_claims: int
    num_undecided: int
    """Ties, and claims without any yes or no. They are in no rate but `share_unanimous`."""
    rate: float | None
    """Share of decided claims whose majority is the label."""
    rate_true: float | None
    """The same over claims labelled true: the rest are true claims that the judge denies."""
    rate_false: float | None
    kappa: float | None
    """Cohen's kappa of label and majority over decided claims: 1 is full agreement, 0 is chance.
    None also when both raters always say the same one thing."""
    share_unanimous: float | None
    """Share of claims whose votes are all yes or all no."""
    mean_vote_entropy: float | None
    """Bits, 0..1, over the yes and no votes of a claim; of claims with at least one such vote."""

    @property
    def share_undecided(self) -> float | None:
        return _share(self.num_undecided, self.num_claims)


def measure_agreement(verdicts: Iterable[Verdict]) -> Agreement:
    """The figures of a stream of verdicts.

    With the counts n[label, majority] of decided claims and N their sum,
    rate p_o = (n[T,T] + n[F,F]) / N, chance p_e = (n[T,.] n[.,T] + n[F,.] n[.,F]) / N^2, and
    kappa = (p_o - p_e) / (1 - p_e).
    """
    counts = {(label, majority): 0 for label in (True, False) for majority in (True, False)}
    num_claims = num_undecided = num_unanimous = num_voted = 0
    entropy = 0.0
    for verdict in verdicts:
        num_claims += 1
        num_unanimous += _is_unanimous(verdict)
        if verdict.num_yes + verdict.num_no:
            num_voted += 1
            entropy += vote_entropy(verdict)
        if verdict.majority is None:
            num_undecided += 1
        else:
            counts[verdict.label, verdict.majority] += 1
    true, false = counts[True, True], counts[False, False]
    num_true, num_false = true + counts[True, False], false + counts[False, True]
    return Agreement(
        num_claims=num_claims,
        num_undecided=num_undecided,
        rate=_share(true + false, num_true + num_false),
        rate_true=_share(true, num_true),
        rate_false=_share(false, num_false),
        kappa=kappa_of_counts(counts),
        share_unanimous=_share(num_unanimous, num_claims),
        mean_vote_entropy=_share(entropy, num_voted),
    )


def vote_entropy(verdict: Verdict) -> float:
    """Bits of the split of yes and no votes: 0 when they agree or there are none, 1 for a tie."""
    total = verdict.num_yes + verdict.num_no
    shares = [votes / total for votes in (verdict.num_yes, verdict.num_no) if votes]
    return sum(-share * math.log2(share) for share in shares)


def _is_unanimous(verdict: Verdict) -> bool:
    return not verdict.num_unclear and (verdict.num_yes == 0) != (verdict.num_no == 0)


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
