"""Outcome advantage: a response's reward against its group's (GRPO, arXiv 2402.03300)."""

import torch
from jaxtyping import Float
from torch import Tensor

from vapo_verl.advantage.groups import Groups

GRPO_EPSILON = 1e-6

PerResponse = Float[Tensor, "batch"]


def outcome_advantage(
    rewards: PerResponse, groups: Groups, *, normalize_by_std: bool, epsilon: float
) -> PerResponse:
    """A_i = R_i - mean_g, over (std_g + epsilon) when normalised.

    std_g is the sample's (n - 1), and a group of one has mean 0 and std 1: alone, a response is
    judged by its reward as it is. Both are veRL's `compute_grpo_outcome_advantage`, and so is
    every rounding. One difference: a group of equal rewards gets exactly 0. There veRL divides
    the rounding error of the mean by epsilon: eight rewards of 2.1 in float32 get -0.19 each.
    Without the std it is the advantage of Dr.GRPO (arXiv 2503.20783).
    """
    mean, std = rewards.new_zeros(groups.num_groups), rewards.new_ones(groups.num_groups)
    for group, members in enumerate(groups.members()):
        if len(members) > 1:  # group by group, for any other order of summing rounds otherwise
            mean[group], std[group] = rewards[members].mean(), rewards[members].std()
    advantage = rewards - mean[groups.index]
    if normalize_by_std:
        advantage = advantage / (std[groups.index] + epsilon)
    tells_apart = groups.unequal(rewards) | (groups.sizes() == 1)
    return torch.where(tells_apart[groups.index], advantage, 0.0)
