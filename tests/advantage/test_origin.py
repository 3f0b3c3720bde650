"""Where advantages come from, on groups small enough to count by hand."""

import pytest
import torch

from vapo_verl.advantage.grpo import advantage_origin


def origin(rewards, plain, accuracy, groups, normalize_by_std=True):
    return advantage_origin(
        torch.tensor(rewards),
        torch.tensor(plain),
        torch.tensor(accuracy),
        groups,
        normalize_by_std=normalize_by_std,
    )


MIXED_AND_RIGHT = {
    "rewards": [2.0, 1.0, 2.08, 2.09],
    "plain": [2.0, 1.0, 2.0, 2.0],
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
    found = origin([2.1, 1.05], [2.0, 1.0], [1.0, 1.0], ["a", "a"])
    assert found.perception_only == 0.0 and found.groups_right == 1.0


def test_half_an_answer_is_not_right():
    found = origin([0.5, 0.5], [0.5, 0.5], [0.5, 0.5], ["a", "a"])
    assert found.groups_wrong == 1.0
    assert found.perception_only == 0.0  # no advantage at all
