"""Decoupled normalisation: perception is compared by itself, and gamma is its weight."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from vapo_verl.advantage.grpo import (
    GRPO_EPSILON,
    Groups,
    RewardParts,
    decoupled_advantage,
    outcome_advantage,
    perception_advantage,
    perception_fraction,
)
from vapo_verl.advantage.vapo import vapo_advantage

nan = float("nan")
few = settings(max_examples=80)
by_std = st.booleans()
weights = st.sampled_from([0.1, 0.5, 1.0, 3.0])
NORMALIZATIONS = ("total", "decoupled")


def parts_of(base, perception, weight):
    return RewardParts(base=base, perception=perception, weight=weight)


@st.composite
def batches(draw):
    """Bases of few values, perception that is missing here and there, and groups."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.integers(1, 12))
    base = torch.randint(0, 3, (size,), generator=generator).double()
    perception = torch.rand(size, generator=generator, dtype=torch.float64)
    perception[torch.rand(size, generator=generator) < draw(st.floats(0, 1))] = nan
    ids = torch.randint(0, 3, (size,), generator=generator).tolist()
    return base, perception, ids


def groups_of(ids):
    return Groups.of(ids, torch.device("cpu"))


def decoupled(base, perception, ids, weight, normalize_by_std, epsilon=GRPO_EPSILON):
    return decoupled_advantage(
        parts_of(base, perception, weight),
        groups_of(ids),
        normalize_by_std=normalize_by_std,
        epsilon=epsilon,
    )


def test_in_a_mixed_group_perception_has_its_weight_and_incorrect_answers_have_none():
    base = torch.tensor([2.0, 2.0, 1.0])
    found = decoupled(base, torch.tensor([0.9, 0.7, nan]), ["a"] * 3, 0.1, True)
    # accuracy: (1/3, 1/3, -2/3) / sqrt(1/3); perception: (0.1, -0.1) / sqrt(0.02), times 0.1
    expected = [0.57735 + 0.0707107, 0.57735 - 0.0707107, -1.1547]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    plain = decoupled(base, torch.tensor([0.9, 0.7, nan]), ["a"] * 3, 0.1, False)
    assert plain.tolist() == pytest.approx([1 / 3 + 0.01, 1 / 3 - 0.01, -2 / 3], abs=1e-6)


@few
@given(batches(), by_std)
def test_gamma_0_is_grpo_to_the_bit(batch, normalize_by_std):
    base, perception, ids = batch
    mask = torch.ones(len(ids), 2)
    ours = vapo_advantage(
        base, ids, mask, parts=parts_of(base, perception, 0.0),
        normalization="decoupled", normalize_by_std=normalize_by_std,
    )  # fmt: skip
    grpo = vapo_advantage(base, ids, mask, normalize_by_std=normalize_by_std)
    assert torch.equal(ours, grpo)


@few
@given(batches(), weights, by_std)
def test_fewer_than_two_that_pass_have_no_perception(batch, weight, normalize_by_std):
    base, perception, ids = batch
    passing = [i for i, known in zip(ids, perception.isfinite().tolist(), strict=True) if known]
    alone = torch.tensor([passing.count(i) < 2 for i in ids])
    ours = decoupled(base, perception, ids, weight, normalize_by_std)
    grpo = decoupled(base, perception, ids, 0.0, normalize_by_std)
    unprobed = perception.isnan()
    assert torch.equal(ours[alone | unprobed], grpo[alone | unprobed])
    assert ours.isfinite().all()


@few
@given(batches(), weights, by_std, st.integers(-4, 4))
def test_a_shift_of_one_part_leaves_the_other_alone(batch, weight, normalize_by_std, shift):
    base, perception, ids = batch
    before = decoupled(base, perception, ids, weight, normalize_by_std)
    several = torch.tensor([ids.count(i) > 1 for i in ids])  # a group of one has its base
    moved = base + shift * several
    torch.testing.assert_close(
        decoupled(moved, perception, ids, weight, normalize_by_std), before, atol=1e-9, rtol=0
    )
    torch.testing.assert_close(
        decoupled(base, perception + shift, ids, weight, normalize_by_std), before,
        atol=1e-5, rtol=0,
    )  # fmt: skip


@few
@given(batches(), weights, st.sampled_from([0.25, 2.0, 64.0]))
def test_a_scale_of_one_part_leaves_the_other_alone(batch, weight, scale):
    base, perception, ids = batch
    options = {"normalize_by_std": True, "epsilon": 1e-12}
    before = decoupled(base, perception, ids, weight, **options)
    several = torch.tensor([ids.count(i) > 1 for i in ids])
    scaled = torch.where(several, base * scale, base)
    for changed in ((scaled, perception), (base, perception * scale)):
        torch.testing.assert_close(
            decoupled(*changed, ids, weight, **options), before, atol=1e-6, rtol=0
        )


@few
@given(batches(), weights, by_std)
def test_the_two_parts_add_up_and_each_is_centred(batch, weight, normalize_by_std):
    base, perception, ids = batch
    groups = groups_of(ids)
    options = {"normalize_by_std": normalize_by_std, "epsilon": GRPO_EPSILON}
    of_base = outcome_advantage(base, groups, **options)
    of_perception = perception_advantage(perception, groups, **options)
    torch.testing.assert_close(
        decoupled(base, perception, ids, weight, normalize_by_std),
        of_base + weight * of_perception,
        atol=1e-12,
        rtol=0,
    )
    for members in groups.members():
        assert of_perception[members].sum().abs() < 1e-6
        assert len(members) == 1 or of_base[members].sum().abs() < 1e-6


@few
@given(batches(), weights, by_std)
def test_where_every_response_passes_and_answers_alike_only_the_scale_differs(
    batch, weight, normalize_by_std
):
    """In such a group `total` divides gamma away; decoupled multiplies it back."""
    _, perception, ids = batch
    perception = torch.where(perception.isnan(), 0.5, perception)
    base = torch.full_like(perception, 2.0)
    several = torch.tensor([ids.count(i) > 1 for i in ids])
    groups = groups_of(ids)
    total = outcome_advantage(
        parts_of(base, perception, weight).rewards(),
        groups,
        normalize_by_std=normalize_by_std,
        epsilon=1e-12,
    )
    ours = decoupled(base, perception, ids, weight, normalize_by_std, epsilon=1e-12)
    factor = weight if normalize_by_std else 1.0
    torch.testing.assert_close(ours[several], factor * total[several], atol=1e-5, rtol=0)


@few
@given(batches(), weights, by_std, st.randoms(use_true_random=False))
def test_order_does_not_matter(batch, weight, normalize_by_std, random):
    base, perception, ids = batch
    order = list(range(len(ids)))
    random.shuffle(order)
    before = decoupled(base, perception, ids, weight, normalize_by_std)
    after = decoupled(
        base[order], perception[order], [ids[i] for i in order], weight, normalize_by_std
    )
    torch.testing.assert_close(after, before[order], atol=1e-9, rtol=0)


@few
@given(batches(), by_std, st.sampled_from(NORMALIZATIONS))
def test_the_fraction_is_0_without_gamma_and_grows_with_it_if_decoupled(
    batch, normalize_by_std, normalization
):
    base, perception, ids = batch
    found = [
        perception_fraction(
            parts_of(base, perception, weight),
            groups_of(ids),
            normalization=normalization,
            normalize_by_std=normalize_by_std,
            epsilon=GRPO_EPSILON,
        )
        for weight in (0.0, 0.1, 1.0)
    ]
    assert found[0] == 0.0
    assert all(0 <= fraction <= 1 for fraction in found)
    # With `total` the mean of what passes also moves the rest of the advantage, either way.
    assert normalization == "total" or found[1] <= found[2] + 1e-9


def test_float32_rounding_of_equal_bases_is_no_advantage():
    perception = torch.tensor([0.7, 0.8, 0.9])
    found = decoupled(torch.full((3,), 1.8), perception, ["a"] * 3, 0.1, True)
    assert found.tolist() == pytest.approx([-0.1, 0.0, 0.1], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalization": "both"}, r"normalization='both': pick one of"),
        ({"normalization": "decoupled"}, r"needs the parts of the rewards"),
        (
            {
                "normalization": "decoupled",
                "parts": RewardParts(
                    base=torch.tensor([1.0, 1.0]), perception=torch.tensor([0.5, nan]), weight=0.1
                ),
            },
            r"a reward of 2\.0000 is not the sum of its parts, 1\.0500",
        ),
        (
            {
                "normalization": "decoupled",
                "parts": RewardParts(base=torch.ones(3), perception=torch.ones(2), weight=0.1),
            },
            r"base \(3,\) and perception \(2,\) are not those of rewards \(2,\)",
        ),
    ],
)
def test_what_cannot_be_decoupled_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        vapo_advantage(torch.tensor([2.0, 1.0]), ["a", "a"], torch.ones(2, 3), **options)
