"""Claims are drawn without replacement and never part from their labels; draws follow the key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vapo_verl.anchors import SampleKey, plan_anchors
from vapo_verl.config import PLACEMENTS
from vapo_verl.data.claims_column import Claim

PIECES = ["<think>", *[word for i in range(40) for word in (f" word{i}", ".")], "</think>", "x"]
CLAIMS = [Claim(f"claim {i}", i % 3 == 0) for i in range(20)]
LABELS = {claim.text: claim.label for claim in CLAIMS}


def key(**changed) -> SampleKey:
    return SampleKey(**{"seed": 0, "step": 1, "prompt_uid": "7", "sample": 2} | changed)


def plan(pieces=PIECES, claims=CLAIMS, k=20, placement="random", gap=1, sample_key=None):
    rng = (sample_key or key()).generator("anchors")
    return plan_anchors(pieces, claims, num_anchors=k, placement=placement, min_gap=gap, rng=rng)


@given(
    st.integers(0, 30),
    st.integers(0, 30),
    st.sampled_from(PLACEMENTS),
    st.integers(0, 2**20),
    st.integers(1, 5),
)
def test_every_claim_keeps_its_label_and_is_drawn_once(num_claims, k, placement, seed, gap):
    claims = [Claim(f"claim {i}", bool((seed >> i % 20) & 1)) for i in range(num_claims)]
    anchors = plan(claims=claims, k=k, placement=placement, gap=gap, sample_key=key(seed=seed))
    labels = {claim.text: claim.label for claim in claims}
    assert len(anchors) == min(k, num_claims)
    assert len({anchor.claim for anchor in anchors}) == len(anchors)
    assert all(anchor.label == labels[anchor.claim] for anchor in anchors)
    assert all(1 <= anchor.position <= len(PIECES) for anchor in anchors)


def test_no_tokens_or_no_claims_plan_nothing():
    assert plan(pieces=[]) == []
    assert plan(claims=[]) == []


def test_a_response_without_any_boundary_is_asked_at_the_end_of_its_reasoning():
    anchors = plan(pieces=["<think>", "hm", " hm", "</think>", "x"], k=2)
    assert [(anchor.position, anchor.own_boundary) for anchor in anchors] == [(3, False)] * 2


def test_a_response_that_closes_its_reasoning_at_once_is_asked_at_its_end():
    assert [a.position for a in plan(pieces=["</think>", "x", "y"], k=1)] == [3]


def test_same_key_same_plan_whatever_was_planned_before():
    first = plan()
    plan(sample_key=key(sample=3))
    assert plan() == first


@pytest.mark.parametrize("change", [{"seed": 1}, {"step": 2}, {"prompt_uid": "8"}, {"sample": 3}])
def test_every_part_of_the_key_changes_the_draws(change):
    assert plan(sample_key=key(**change)) != plan()
    assert key(**change).sampling_seed() != key().sampling_seed()


def test_purposes_draw_from_streams_of_their_own():
    assert key().generator("anchors").random() != key().generator("other").random()


def test_claims_and_cuts_are_paired_at_random():
    # were claims handed out in file order along the response, claim 0 would always come first
    first_claims = {plan(sample_key=key(sample=i))[0].claim for i in range(40)}
    assert len(first_claims) > 10


LONGER = [*PIECES[:60], *[" word", "."] * 30, *PIECES[60:]]


def paired_plan(pieces, sample, placement="random", k=5):
    rng = key(sample=sample).group_generator("anchors")
    return plan_anchors(
        pieces, CLAIMS, num_anchors=k, placement=placement, min_gap=1, rng=rng, paired=True
    )


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_paired_siblings_get_the_same_claims_in_the_same_order(placement):
    plans = [paired_plan(PIECES, 0, placement), paired_plan(LONGER, 1, placement)]
    assert [a.claim for a in plans[0]] == [a.claim for a in plans[1]]


def test_paired_siblings_are_cut_at_the_same_fractions_of_their_reasoning():
    short, long = paired_plan(PIECES, 0), paired_plan(LONGER, 1)
    for one, other in zip(short, long, strict=True):
        # a boundary is at most 2 tokens away from any point
        assert one.position / 81 == pytest.approx(other.position / 141, abs=3 / 81)
    assert paired_plan(PIECES, 0) == paired_plan(PIECES, 3)
    groups = {tuple(a.claim for a in plan(sample_key=key(sample=s), k=5)) for s in range(4)}
    assert len(groups) == 4, "independent siblings draw their own"


def test_the_draws_of_a_group_are_those_of_no_response():
    group = key().group_generator("anchors").random(8).tolist()
    assert all(key(sample=s).generator("anchors").random(8).tolist() != group for s in range(8))
    assert key(step=2).group_generator("anchors").random(8).tolist() != group


def test_independent_draws_are_those_of_earlier_versions():
    # entropy "0/1/7/2/anchors"; a change would make committed runs unrepeatable
    assert key().sampling_seed() == 1180274151
    assert key().generator("anchors").integers(0, 1000, 4).tolist() == [689, 236, 359, 124]
