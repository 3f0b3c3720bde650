"""GRPO (arXiv 2402.03300): a response's reward against those of its group."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

GRPO_EPSILON = 1e-6

PerResponse = Float[Tensor, "batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Which responses belong to which prompt."""

    index: Tensor
    """Group of each response [B], numbered in order of first appearance."""
    num_groups: int

    @classmethod
    def of(cls, group_ids: Iterable[Hashable], device: torch.device) -> "Groups":
        """From hashable ids [B], such as veRL's object array of uid strings."""
        ids = group_ids.tolist() if hasattr(group_ids, "tolist") else list(group_ids)
        number = {group_id: i for i, group_id in enumerate(dict.fromkeys(ids))}
        index = torch.tensor([number[i] for i in ids], dtype=torch.long, device=device)
        return cls(index=index, num_groups=len(number))

    def members(self) -> Iterator[Tensor]:
        """Responses of each group, in the order of the batch."""
        return (torch.nonzero(self.index == group)[:, 0] for group in range(self.num_groups))

    def sizes(self) -> Tensor:
        """Responses of each group [G]."""
        return torch.bincount(self.index, minlength=self.num_groups)

    def unequal(self, values: Tensor) -> Tensor:
        """Whether a group's values [B] differ at all [G]."""
        first = values.new_zeros(self.num_groups)
        low = first.scatter_reduce(0, self.index, values, "amin", include_self=False)
        high = first.scatter_reduce(0, self.index, values, "amax", include_self=False)
        return high > low


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


def sum_by(index: Tensor, values: Tensor, size: int) -> Tensor:
    """Sum of the values [N] at each index 0..size-1; 0 where there are none."""
    return values.new_zeros(size).index_add_(0, index, values)


def mean_by(index: Tensor, values: Tensor, size: int) -> Tensor:
    """Mean of the values [N] at each index 0..size-1; 0 where there are none."""
    return sum_by(index, values, size) / torch.bincount(index, minlength=size).clamp(min=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageOrigin:
    """Shares in 0..1; the trainer logs them under `vapo/advantage/`."""

    groups_right: float
    """Groups of which every answer is right: only the rest of the reward tells them apart."""
    groups_mixed: float
    groups_wrong: float
    perception_only: float
    """Of sum |A_i|, the part in groups whose rewards are equal but for perception. Over the std of
    such a group, the smallest difference in perception weighs as much as an answer elsewhere."""


def advantage_origin(
    rewards: PerResponse,
    without_perception: PerResponse,
    accuracy: PerResponse,
    group_ids: Sequence[Hashable],
    *,
    normalize_by_std: bool,
) -> AdvantageOrigin:
    """Shares of groups by their answers, and of advantage that perception alone decides.

    Args:
        rewards: R_i, as the estimator gets it.
        without_perception: the same less gamma * R_perc.
        accuracy: R_acc; a right answer has 1.
        group_ids: equal for responses to the same prompt.
        normalize_by_std: as the estimator does it.

    A batch without any advantage has `perception_only` 0.
    """
    groups = Groups.of(group_ids, rewards.device)
    num_right = sum_by(groups.index, (accuracy == 1).double(), groups.num_groups)
    all_right, none_right = num_right == groups.sizes(), num_right == 0
    advantage = outcome_advantage(
        rewards, groups, normalize_by_std=normalize_by_std, epsilon=GRPO_EPSILON
    )
    size = advantage.abs().double()
    equal_otherwise = ~groups.unequal(without_perception)[groups.index]
    return AdvantageOrigin(
        groups_right=float(all_right.double().mean()),
        groups_mixed=float((~all_right & ~none_right).double().mean()),
        groups_wrong=float(none_right.double().mean()),
        perception_only=float(size[equal_otherwise].sum() / size.sum()) if size.any() else 0.0,
    )
