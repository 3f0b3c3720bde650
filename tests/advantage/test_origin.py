"""Where advantages come from, on groups small enough to count by hand."""

from math import nan

import pytest
import torch

from vapo_verl.advantage.grpo import RewardParts, advantage_origin


def origin(base, perception, accuracy, groups, *, normalize_by_std=True, normalization="total"):
    parts = RewardParts(base=torch.tensor(base), perception=torch.tensor(perception), weight=0.1)
    return advantage_origin(
        parts,
        torch.tensor(accuracy),
        groups,
        normalization=normalization,
        normalize_by_std=normalize_by_std,
    )


MIXED_AND_RIGHT = {
    # rewards 2.0, 1.0, 2.08, 2.09
    "base": [2.0, 1.0, 2.0, 2.0],
    "perception": [0.0, nan, 0.8, 0.9],
    "accuracy": [1.0, 0.0, 1.0, 1.0],
    "groups": ["a", "a", "b", "b"],
}


def test_over_the_std_a_hundredth_of_perception_weighs_as_much_as_an_answer():
    found = origin(**MIXED_AND_RIGHT)
    # either pair gets +-0.7071, whatever its rewards' distance
    assert found.perception_only == pytest.approx(0.5, abs=1e-3)
    assert (found.groups_right, found.groups_mixed, found.groups_wrong) == (0.5, 0.5, 0.0)


def test_without_the_std_it_weighs_what_it_is_worth():
    found = origin(**MIXED_AND_RIGHT, normalize_by_std=False)
    # advantages +-0.5 and +-0.005: 0.01 of 1.01
    assert found.perception_only == pytest.approx(0.01 / 1.01, rel=1e-3)


def test_a_group_whose_formats_differ_is_not_perceptions_alone():
    found = origin([2.0, 1.0], [1.0, 0.5], [1.0, 1.0], ["a", "a"])
    assert found.perception_only == 0.0 and found.groups_right == 1.0


def test_half_an_answer_is_not_right():
    found = origin([0.5, 0.5], [nan, nan], [0.5, 0.5], ["a", "a"])
    assert found.groups_wrong == 1.0
    assert found.perception_only == 0.0  # no advantage at all
    assert found.perception_fraction == 0.0


MIXED = {
    "base": [2.0, 2.0, 1.0],
    "perception": [0.9, 0.7, nan],
    "accuracy": [1.0, 1.0, 0.0],
    "groups": ["a", "a", "a"],
}


def test_in_a_mixed_group_little_of_the_advantage_is_perceptions():
    # Rewards 2.09, 2.07, 1: mean 1.72, sum |A| std = 0.37 + 0.35 + 0.72. Perception distinguishes
    # the first two by +-0.1 * 0.1; without it they have 0.36 each.
    found = origin(**MIXED)
    assert found.perception_fraction == pytest.approx(0.02 / (0.02 + 0.72 + 0.72), rel=1e-3)
    plain = origin(**MIXED, normalize_by_std=False)  # one deviation for all: the same fraction
    assert plain.perception_fraction == pytest.approx(found.perception_fraction, rel=1e-3)


def test_decoupled_gamma_is_its_weight_in_a_mixed_group():
    found = origin(**MIXED, normalization="decoupled")
    # accuracy: (0.577, 0.577, -1.155); perception: 0.1 * (0.707, -0.707)
    assert found.perception_fraction == pytest.approx(0.1414 / (0.1414 + 2.3094), rel=1e-3)


@pytest.mark.parametrize("normalization", ["total", "decoupled"])
def test_where_all_answers_are_correct_perception_decides_everything(normalization):
    found = origin([2.0, 2.0], [0.8, 0.9], [1.0, 1.0], ["a", "a"], normalization=normalization)
    assert found.perception_fraction == pytest.approx(1.0, abs=1e-9)
    assert found.perception_only == 1.0


def test_perception_only_is_of_the_normalisation_at_hand():
    found = origin(**MIXED_AND_RIGHT, normalization="decoupled")
    # (0.7071, -0.7071), and a tenth of that where perception alone differs
    assert found.perception_only == pytest.approx(1 / 11, rel=1e-3)
