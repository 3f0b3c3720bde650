"""How, and why, the perception reward differs between the responses to one prompt (pure).

Within a group R_perc differs for two reasons: what the responses wrote, and which claims were
drawn and where. Only the first is a signal to the policy.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from vapo_verl.anchors.probe import AnchorResult
from vapo_verl.reward.perception import late_weights

AGREEMENT, SPREAD = "vapo/anchors/agreement", "vapo/anchors/spread"
FRACTION = "vapo/advantage/perception_fraction"
SIGNAL_METRICS = (AGREEMENT, SPREAD, FRACTION)
"""The metrics that :func:`no_signal` reads, in the order of its arguments."""
DRAW_FRACTION = "vapo/anchors/draw_fraction"
NUM_FIRST_STEPS = 5
"""Steps after which a run says whether its perception reward carries a signal."""
HIGH_AGREEMENT = 0.95
LEAST_SPREAD = 1e-3
"""Below this standard deviation of R_perc within a group, siblings earn the same."""
_ROUNDING = 1e-12
"""Scores with less variance are equal."""
LOW_FRACTION = 0.05
"""Where perception decides less of the advantage, a run hardly differs from GRPO."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedResponse:
    """The anchors of one response."""

    group_id: Hashable
    """The prompt that its siblings share."""
    results: Sequence[AnchorResult]
    length: int
    """T, tokens of the response."""
    num_claims: int
    """N, the claims from which those of the anchors were drawn."""
    perception: float | None = None
    """R_perc as paid, for instance soft or chance-corrected; None: Eq. 4 with hard scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerceptionSpread:
    """How R_perc varies between the responses to one prompt."""

    spread: float
    """Standard deviation of R_perc as paid within a group, pooled over groups; nan without a group
    of two."""
    draw_fraction: float
    """Fraction of the variance of Eq. 4 with hard scores, 0 to 1, that is due to the draw of claims
    and positions. The rest is due to the responses. nan where it cannot be estimated."""


def claim_agreement(responses: Sequence[ProbedResponse]) -> float:
    """Fraction of pairs of responses to one prompt with the same prediction on a claim.

    Over all pairs of anchors with the same claim in two responses of a group. At 1 a prediction
    depends on claim and image alone: the perception reward then differs between siblings by the
    drawn claims and positions only. nan where no claim was probed in two responses of a group.
    """
    pairs, differing = _pairs(responses)
    return 1 - differing / pairs if pairs else math.nan


def perception_spread(
    responses: Sequence[ProbedResponse], late_emphasis: float, *, paired: bool
) -> PerceptionSpread:
    """Split the variance of R_perc within groups into responses and draws.

    The score of claim j in response i is modelled as s_ij = r_i + c_j + e_ij. With w_k the weights
    of Eq. 4 normalised to sum to 1, K of N claims drawn, and means over responses or groups::

        S = Var_i(R_i)                      = Var(r) + g Var(c) + h Var(e)
        V = Var_k(s_ik) within a response   =            Var(c) +   Var(e)
        A = (s_ij - s_i'j)^2 / 2, siblings  = Var(r)            +   Var(e)
        h = sum_k w_k^2,   g = h - 1 / N, or 0 where siblings get the same claims at the same cuts

    solved for Var(e) by the method of moments; the draw's part of S is g Var(c) + h Var(e). With
    equal weights g is (N - K) / (N K). Where late anchors weigh more, the order of the claims is a
    draw, too, also of all N.

    Args:
        responses: those that were probed, in any order.
        late_emphasis: beta of Eq. 4.
        paired: whether siblings get the same claims (``vapo.anchors.pairing=group``).
    """
    probed_together = defaultdict(list)
    for response in responses:
        if response.results:
            probed_together[response.group_id].append(response)
    groups = {name: group for name, group in probed_together.items() if len(group) > 1}
    if not groups:
        return PerceptionSpread(spread=math.nan, draw_fraction=math.nan)
    moments = {
        name: [_moments(response, late_emphasis) for response in group]
        for name, group in groups.items()
    }
    freedom = sum(len(group) - 1 for group in groups.values())
    total, paid = (
        sum(np.var(group) * len(group) for group in scores) / freedom
        for scores in (
            [[m.score for m in group] for group in moments.values()],
            [[m.paid for m in group] for group in moments.values()],
        )
    )
    spread = math.sqrt(paid)
    probed = [response for group in groups.values() for response in group]
    pairs, differing = _pairs(probed)
    within = [m.variance for group in moments.values() for m in group if not math.isnan(m.variance)]
    if total <= _ROUNDING or not pairs or not within:
        return PerceptionSpread(spread=spread, draw_fraction=math.nan)
    every = [m for group in moments.values() for m in group]
    h = float(np.mean([m.weight for m in every]))
    g = 0.0 if paired else float(np.mean([m.order for m in every]))
    a, v = differing / pairs / 2, float(np.mean(within))
    unexplained = min(max((a + g * v - total) / (1 + g - h), 0.0), a, v) if h < 1 else a
    drawn = g * (v - unexplained) + h * unexplained
    return PerceptionSpread(spread=spread, draw_fraction=float(min(drawn / total, 1.0)))


def no_signal(
    agreements: Sequence[float],
    spreads: Sequence[float],
    fractions: Sequence[float] = (),
    *,
    paired: bool = False,
) -> str | None:
    """Why the perception reward carries no signal, and what to try; None where it does.

    Paired draws ask siblings about a claim at the same cut, so that they agree more often than
    those that are asked at different ones: their agreement is no reason.

    Args:
        agreements: :func:`claim_agreement` of the first steps; nan where a step had none.
        spreads: ``PerceptionSpread.spread`` of the same steps.
        fractions: part of the advantage that perception decides, in the same steps; 0 is perception
            that is measured and not paid, which is no fault.
        paired: whether siblings get the same claims (``vapo.anchors.pairing=group``).
    """
    spread = _mean(spreads)
    pairing = "" if paired else "vapo.anchors.pairing=group, "
    advice = (
        f"Try claims that are harder for this policy, {pairing}longer responses, or "
        "vapo.reward.soft=true; docs/anchors.md and docs/study.md explain."
    )
    if spread is not None and spread < LEAST_SPREAD:
        return (
            f"R_perc does not differ between the responses to one prompt (spread {spread:.4f} over "
            "the first steps): the perception reward carries no signal. " + advice
        )
    agreement = _mean(agreements)
    if not paired and agreement is not None and agreement > HIGH_AGREEMENT:
        return (
            f"the responses to one prompt agree on {agreement:.1%} of their claims (over the first "
            "steps): predictions depend on the image and not on the response, so that the "
            "perception reward carries little signal. " + advice
        )
    fraction = _mean(fractions)
    if spread is not None and fraction is not None and 0 < fraction < LOW_FRACTION:
        return (
            f"perception decides {fraction:.1%} of the advantage (over the first steps): accuracy "
            "decides the rest, and the run will hardly differ from GRPO. Try "
            "vapo.advantage.normalization=decoupled with a larger vapo.reward.perception_weight, "
            "or a policy whose answers are mostly correct; docs/study.md explains."
        )
    return None


@dataclass(frozen=True, slots=True)
class _Moments:
    score: float
    """R_i"""
    variance: float
    """Of s_k within the response, unbiased; nan for one anchor."""
    paid: float
    """R_i as it is paid."""
    weight: float
    """h, sum_k w_k^2"""
    order: float
    """g of a draw without replacement"""


def _moments(response: ProbedResponse, late_emphasis: float) -> _Moments:
    scores = np.array([result.correct for result in response.results], dtype=np.float64)
    positions = [result.anchor.position for result in response.results]
    weights = late_weights(positions, response.length, late_emphasis)
    weights = weights / weights.sum()
    score, weight = float(weights @ scores), float(weights @ weights)
    variance = float(weights @ (scores - score) ** 2) / (1 - weight) if weight < 1 else math.nan
    paid = score if response.perception is None else response.perception
    order = weight - 1 / max(response.num_claims, len(scores))
    return _Moments(score, variance, paid, weight, max(order, 0.0))


def _pairs(responses: Sequence[ProbedResponse]) -> tuple[int, int]:
    """Pairs of siblings' anchors with the same claim and label, and those that differ in
    correctness. If a response is asked a claim twice, the first answer counts."""
    num_correct, num_probed = Counter[Hashable](), Counter[Hashable]()
    for response in responses:
        once: dict[Hashable, bool] = {}
        for result in response.results:
            anchor = result.anchor
            once.setdefault((response.group_id, anchor.claim, anchor.label), result.correct)
        for claim, correct in once.items():
            num_correct[claim] += correct
            num_probed[claim] += 1
    pairs = sum(math.comb(n, 2) for n in num_probed.values())
    differing = sum(
        num_correct[claim] * (n - num_correct[claim]) for claim, n in num_probed.items()
    )
    return pairs, differing


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else None
