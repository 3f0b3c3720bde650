"""GRPO (arXiv 2402.03300): a response's reward against those of its group.

With decoupled normalisation (after GDPO, arXiv 2601.05242) perception is compared by itself.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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

    std_g is the sample's (n - 1). A group of one has mean 0 and std 1, so its reward is used as it
    is. Both match veRL's `compute_grpo_outcome_advantage`, rounding included. One difference: a
    group of equal rewards gets exactly 0. There veRL divides the rounding error of the mean by
    epsilon: eight rewards of 2.1 in float32 get -0.19 each.
    Without the std it is the advantage of Dr.GRPO (arXiv 2503.20783).
    """
    mean, std = rewards.new_zeros(groups.num_groups), rewards.new_ones(groups.num_groups)
    for group, members in enumerate(groups.members()):
        if len(members) > 1:  # group by group: another order of summing rounds differently
            mean[group], std[group] = rewards[members].mean(), rewards[members].std()
    advantage = rewards - mean[groups.index]
    if normalize_by_std:
        advantage = advantage / (std[groups.index] + epsilon)
    tells_apart = groups.unequal(rewards) | (groups.sizes() == 1)
    return torch.where(tells_apart[groups.index], advantage, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardParts:
    """The rewards of a batch in two parts: R_i = base_i + weight * perception_i where that counts.

    The base comes from the weighted parts and never from a difference of rewards: a rounding error
    in a group of equal bases would be divided by itself.
    """

    base: PerResponse
    """Weighted accuracy and format [B]."""
    perception: PerResponse
    """R_perc [B]; nan where it does not count: not probed, or behind the gate of Eq. 5."""
    weight: float
    """gamma"""

    def rewards(self) -> PerResponse:
        """R_i (Eq. 5 of arXiv 2509.25848)."""
        return self.base + self.weight * self.perception.nan_to_num(0.0)


def perception_advantage(
    perception: PerResponse, groups: Groups, *, normalize_by_std: bool, epsilon: float
) -> PerResponse:
    """GRPO's advantage of R_perc among the siblings that have one.

    0 for a response without R_perc (nan), and in a group with fewer than two of them.
    """
    counted = torch.nonzero(perception.isfinite())[:, 0]
    probed = Groups.of(groups.index[counted], perception.device)
    among = outcome_advantage(
        perception[counted], probed, normalize_by_std=normalize_by_std, epsilon=epsilon
    )
    among = torch.where(probed.sizes()[probed.index] > 1, among, 0.0)
    return torch.zeros_like(perception).index_copy(0, counted, among)


def decoupled_advantage(
    parts: RewardParts, groups: Groups, *, normalize_by_std: bool, epsilon: float
) -> PerResponse:
    """A_i = N_g(base)_i + gamma * N_p(R_perc)_i, with N as in :func:`outcome_advantage`.

    N_g is over all responses of the group, N_p over those that pass the gate: see
    :func:`perception_advantage`. In every group gamma is then the weight of perception against
    accuracy. With `total`, A_i = N_g(base + gamma * R_perc)_i, it is far less in groups with
    correct and incorrect answers. In all others perception is the whole advantage, with any gamma.

    Normalising each reward before the weighted sum follows GDPO (group reward-decoupled
    normalisation, arXiv 2601.05242). Its batch-wise normalisation of that sum is left out: an
    advantage would depend on other prompts, and gamma = 0 would not be GRPO. Accuracy and format
    stay one part, as GRPO has them.

    A group of one has its base as advantage.
    """
    base = outcome_advantage(parts.base, groups, normalize_by_std=normalize_by_std, epsilon=epsilon)
    if parts.weight == 0:
        return base
    return base + parts.weight * perception_advantage(
        parts.perception, groups, normalize_by_std=normalize_by_std, epsilon=epsilon
    )


def group_advantage(
    parts: RewardParts,
    groups: Groups,
    *,
    normalization: str,
    normalize_by_std: bool,
    epsilon: float,
) -> PerResponse:
    """A_i with either value of ``vapo.advantage.normalization``."""
    options: dict[str, Any] = {"normalize_by_std": normalize_by_std, "epsilon": epsilon}
    if normalization == "decoupled":
        return decoupled_advantage(parts, groups, **options)
    return outcome_advantage(parts.rewards(), groups, **options)


def perception_fraction(
    parts: RewardParts,
    groups: Groups,
    *,
    normalization: str,
    normalize_by_std: bool,
    epsilon: float,
) -> float:
    """sum_i |P_i| / sum_i (|A_i - P_i| + |P_i|): the part of the advantage due to perception, 0..1.

    P_i is the part of A_i by which perception distinguishes the responses that pass the gate:
    gamma * N_p(R_perc)_i with `decoupled`; with `total` gamma * (R_perc,i - their mean) over the
    same deviation as A_i. The mean itself is in A_i - P_i: there it only adds to a correct answer.
    0 for a batch without any advantage.
    """
    options: dict[str, Any] = {"normalize_by_std": normalize_by_std, "epsilon": epsilon}
    parts = RewardParts(
        base=parts.base.double(), perception=parts.perception.double(), weight=parts.weight
    )
    advantage = group_advantage(parts, groups, normalization=normalization, **options)
    if normalization == "decoupled":
        part = perception_advantage(parts.perception, groups, **options)
    else:
        part = perception_advantage(
            parts.perception, groups, normalize_by_std=False, epsilon=epsilon
        )
        if normalize_by_std:
            part = part / _deviations(parts.rewards(), groups, epsilon)
    of_perception = parts.weight * part
    size = of_perception.abs().double().sum()
    rest = (advantage - of_perception).abs().double().sum()
    return float(size / (size + rest)) if size > 0 else 0.0


def _deviations(rewards: PerResponse, groups: Groups, epsilon: float) -> PerResponse:
    """The divisor of :func:`outcome_advantage` [B]."""
    std = rewards.new_ones(groups.num_groups)
    for group, members in enumerate(groups.members()):
        if len(members) > 1:
            std[group] = rewards[members].std() + epsilon
    return std[groups.index]


def sum_by(index: Tensor, values: Tensor, size: int) -> Tensor:
    """Sum of the values [N] at each index 0..size-1; 0 where there are none."""
    return values.new_zeros(size).index_add_(0, index, values)


def mean_by(index: Tensor, values: Tensor, size: int) -> Tensor:
    """Mean of the values [N] at each index 0..size-1; 0 where there are none."""
    return sum_by(index, values, size) / torch.bincount(index, minlength=size).clamp(min=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageOrigin:
    """Fractions in 0..1; the trainer logs them under `vapo/advantage/`."""

    groups_right: float
    """Groups whose answers are all correct: only the rest of the reward distinguishes them."""
    groups_mixed: float
    groups_wrong: float
    perception_only: float
    """Part of sum |A_i| in groups whose rewards differ in perception only. Divided by the std of
    such a group, the smallest difference in perception weighs as much as an answer elsewhere."""
    perception_fraction: float
    """See :func:`perception_fraction`."""


def advantage_origin(
    parts: RewardParts,
    accuracy: PerResponse,
    group_ids: Sequence[Hashable],
    *,
    normalization: str,
    normalize_by_std: bool,
) -> AdvantageOrigin:
    """Fractions of groups by their answers, and of advantage that perception decides.

    Args:
        parts: of R_i, as the estimator gets it.
        accuracy: R_acc; a correct answer has 1.
        group_ids: equal for responses to the same prompt.
        normalization: ``vapo.advantage.normalization``.
        normalize_by_std: as the estimator does it.

    A batch without any advantage has `perception_only` 0.
    """
    groups = Groups.of(group_ids, accuracy.device)
    num_right = sum_by(groups.index, (accuracy == 1).double(), groups.num_groups)
    all_right, none_right = num_right == groups.sizes(), num_right == 0
    options: dict[str, Any] = {"normalize_by_std": normalize_by_std, "epsilon": GRPO_EPSILON}
    advantage = group_advantage(parts, groups, normalization=normalization, **options)
    size = advantage.abs().double()
    equal_otherwise = ~groups.unequal(parts.base)[groups.index]
    return AdvantageOrigin(
        groups_right=float(all_right.double().mean()),
        groups_mixed=float((~all_right & ~none_right).double().mean()),
        groups_wrong=float(none_right.double().mean()),
        perception_only=float(size[equal_otherwise].sum() / size.sum()) if size.any() else 0.0,
        perception_fraction=perception_fraction(
            parts, groups, normalization=normalization, **options
        ),
    )
