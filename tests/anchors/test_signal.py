"""What part of the spread of R_perc is due to the draw, against simulations of known variance."""

import math
from dataclasses import replace

import numpy as np
import pytest

from vapo_verl.anchors import Anchor, AnchorResult
from vapo_verl.anchors.signal import (
    NUM_FIRST_STEPS,
    ProbedResponse,
    claim_agreement,
    no_signal,
    perception_spread,
)

NUM_CLAIMS, LENGTH = 20, 100


def probed(group, correct_by_claim, positions=None, num_claims=NUM_CLAIMS):
    positions = positions or range(1, len(correct_by_claim) + 1)
    return ProbedResponse(
        group_id=group,
        results=[
            AnchorResult(
                anchor=Anchor(position=a, claim=str(claim), label=True, own_boundary=True),
                answer=bool(correct),
                p_yes=float(correct),
                num_prompt_tokens=1,
                num_cached_tokens=0,
            )
            for a, (claim, correct) in zip(positions, correct_by_claim.items(), strict=True)
        ],
        length=LENGTH,
        num_claims=num_claims,
    )


def test_siblings_that_score_alike_have_no_spread_and_no_fraction():
    found = perception_spread(
        [probed("a", {0: 1, 1: 0}), probed("a", {0: 1, 1: 0})], 0.0, paired=True
    )
    assert found.spread == 0 and math.isnan(found.draw_fraction)


def test_the_spread_is_pooled_over_groups():
    responses = [
        *(probed("a", {0: 1, 1: s}) for s in (1, 0)),  # R 1 and 0.5: variance 0.125
        *(probed("b", {0: 1, 1: 1}) for _ in range(2)),  # 0
        probed("alone", {0: 0, 1: 0}),
        probed("c", {}),
    ]
    assert perception_spread(responses, 0.0, paired=True).spread == pytest.approx(0.0625**0.5)


def test_no_group_of_two_has_no_spread():
    found = perception_spread([probed("a", {0: 1}), probed("b", {0: 1})], 1.5, paired=False)
    assert math.isnan(found.spread) and math.isnan(found.draw_fraction)
    assert math.isnan(claim_agreement([probed("a", {0: 1}), probed("b", {0: 1})]))


def simulated(num_anchors, response_sd, claim_sd, *, paired, groups=400, siblings=5, seed=0):
    """Bernoulli scores around 0.5 + r_i + c_j, with the draws of the two pairings."""
    rng = np.random.default_rng(seed)
    responses = []
    for group in range(groups):
        claims = rng.normal(0, claim_sd, NUM_CLAIMS)
        shared = rng.permutation(NUM_CLAIMS)[:num_anchors]
        for _ in range(siblings):
            drawn = shared if paired else rng.permutation(NUM_CLAIMS)[:num_anchors]
            p = np.clip(0.5 + rng.normal(0, response_sd) + claims[drawn], 0, 1)
            scores = rng.random(num_anchors) < p
            responses.append(probed(group, dict(zip(drawn.tolist(), scores, strict=True))))
    return responses


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("num_anchors", [5, 20])
def test_the_fraction_is_that_of_the_simulation(num_anchors, paired):
    response_sd, claim_sd = 0.1, 0.2
    responses = simulated(num_anchors, response_sd, claim_sd, paired=paired)
    # Var(s) = 0.25; c and r explain 0.04 and 0.01 of it, the rest is e
    left_out = 0 if paired else (NUM_CLAIMS - num_anchors) / NUM_CLAIMS
    drawn = (left_out * claim_sd**2 + 0.25 - response_sd**2 - claim_sd**2) / num_anchors
    total = response_sd**2 + drawn
    found = perception_spread(responses, 0.0, paired=paired)
    assert found.spread == pytest.approx(total**0.5, rel=0.05)
    assert found.draw_fraction == pytest.approx(drawn / total, abs=0.07)


@pytest.mark.parametrize(("num_anchors", "late_emphasis"), [(5, 0.0), (5, 1.5), (20, 1.5)])
def test_where_claims_alone_decide_pairing_takes_the_spread_away(num_anchors, late_emphasis):
    always = {claim: claim % 2 for claim in range(NUM_CLAIMS)}
    rng = np.random.default_rng(1)

    def draw():
        return {int(c): always[int(c)] for c in rng.permutation(NUM_CLAIMS)[:num_anchors]}

    def positions():
        return sorted(rng.permutation(LENGTH - 1)[:num_anchors] + 1)

    # with all claims drawn, late emphasis makes their order a draw
    apart = [probed(group, draw(), positions()) for group in range(200) for _ in range(5)]
    found = perception_spread(apart, late_emphasis, paired=False)
    assert found.draw_fraction > 0.9
    shared = [probed(group, drawn) for group in range(100) for drawn in [draw()] * 5]
    together = perception_spread(shared, 0.0, paired=True)
    assert together.spread == pytest.approx(0, abs=1e-9) and math.isnan(together.draw_fraction)
    assert claim_agreement(apart) == claim_agreement(shared) == 1


def test_the_spread_is_that_of_the_reward_that_is_paid():
    # the same hard scores, as under soft scores of one side of 0.5
    paid = [replace(probed("a", {0: 1, 1: 1}), perception=value) for value in (0.6, 0.95)]
    found = perception_spread(paid, 1.5, paired=False)
    assert found.spread == pytest.approx(0.35 / 2**0.5) and math.isnan(found.draw_fraction)


def test_late_anchors_weigh_more_in_the_spread():
    # only the last of four anchors differs
    group = [probed("a", {0: 1, 1: 1, 2: 1, 3: s}, positions=[25, 50, 75, 100]) for s in (0, 1)]
    flat, late = (perception_spread(group, beta, paired=True).spread for beta in (0.0, 3.0))
    assert late > flat == pytest.approx(0.25 / 2**0.5)


def asked(group, *claims):
    """A response with a correct prediction on claims given as text, label, correct."""
    response = probed(group, {number: correct for number, (_, _, correct) in enumerate(claims)})
    results = [
        replace(result, anchor=replace(result.anchor, claim=text, label=label))
        for result, (text, label, _) in zip(response.results, claims, strict=True)
    ]
    return replace(response, results=results)


def test_a_claim_with_both_labels_is_two_claims():
    """One prediction is correct on the one and incorrect on the other."""
    alike = asked("a", ("red", True, True), ("red", False, False))
    assert claim_agreement([alike, alike]) == 1


def test_agreement_is_between_responses():
    unsure = asked("a", ("red", True, True), ("red", True, False))  # early and late
    assert claim_agreement([unsure, unsure]) == 1
    assert math.isnan(claim_agreement([unsure]))


def test_the_warning_needs_agreement_or_no_spread():
    nan = [math.nan] * NUM_FIRST_STEPS
    assert no_signal([0.9] * NUM_FIRST_STEPS, [0.04] * NUM_FIRST_STEPS) is None
    assert "96.2%" in str(no_signal([0.962] * NUM_FIRST_STEPS, [0.04] * NUM_FIRST_STEPS))
    assert "does not differ" in str(no_signal([0.5] * NUM_FIRST_STEPS, [0.0] * NUM_FIRST_STEPS))
    assert no_signal(nan, nan) is None


def test_paired_draws_agree_more_often_without_a_fault():
    high, spread = [0.96] * NUM_FIRST_STEPS, [0.06] * NUM_FIRST_STEPS
    assert "pairing=group" in str(no_signal(high, spread))
    assert no_signal(high, spread, paired=True) is None
    equal = str(no_signal(high, [0.0] * NUM_FIRST_STEPS, paired=True))
    assert "does not differ" in equal and "pairing=group" not in equal


def test_the_warning_also_comes_where_perception_decides_little():
    agreements, spreads = [0.9] * NUM_FIRST_STEPS, [0.04] * NUM_FIRST_STEPS

    def reason(fraction, spreads=spreads):
        return no_signal(agreements, spreads, [fraction] * NUM_FIRST_STEPS)

    assert "decides 3.1% of the advantage" in str(reason(0.031))
    assert "docs/study.md" in str(reason(0.031))
    assert reason(0.06) is None
    assert reason(0.0) is None  # measured and not paid
    assert reason(math.nan) is None
    assert reason(0.031, [math.nan] * NUM_FIRST_STEPS) is None  # no anchors: nothing to decide by
