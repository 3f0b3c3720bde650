"""What the advantages of a batch come from: right and wrong answers, or perception alone."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vapo_verl.advantage.grpo import GRPO_EPSILON, Groups, outcome_advantage, sum_by

PerResponse = Float[Tensor, "batch"]


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
