"""From fields of the replay buffer to advantages and back."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from verl.workers.utils.padding import response_to_nested

from vapo_verl.advantage.estimator import NAME
from vapo_verl.advantage.origin import advantage_origin
from vapo_verl.advantage.vapo import AdvantageStats, vapo_advantage_with_stats
from vapo_verl.config import AdvantageConfig, VapoConfig
from vapo_verl.trainer.replay_buffer import column_values, fit_width


def goes_beyond_upstream(settings: AdvantageConfig, algorithm: Mapping[str, Any]) -> bool:
    """Whether veRL's call of our estimator, which is told `algorithm.*` only, is not enough.

    It has no visual attention, and divides by the standard deviation as
    `algorithm.norm_adv_by_std_in_grpo` says, which `vapo.advantage.normalize_by_std` may override.
    """
    if algorithm["adv_estimator"] != NAME:
        return False
    by_std = algorithm["norm_adv_by_std_in_grpo"]
    return settings.attention_coef > 0 or settings.normalize_by_std != by_std


def batch_advantages(
    data: Mapping[str, Any], reward_field: str, settings: AdvantageConfig
) -> tuple[torch.Tensor, AdvantageStats]:
    """Advantages of a batch, ragged as its responses are, and what the estimator met.

    Args:
        data: ``uid`` (one per row) and the ragged [B, T_i] fields ``response_mask``,
            ``visual_attention`` (nan where unknown; a padding row's may have another length) and
            ``reward_field``, whose sum over a response is its reward.
        reward_field: ``rm_scores``, or ``token_level_rewards`` where the KL is part of the reward.
    """
    ragged_mask = data["response_mask"]
    mask = ragged_mask.to_padded_tensor(0)
    attention = data["visual_attention"].to_padded_tensor(float("nan"))
    advantages, stats = vapo_advantage_with_stats(
        data[reward_field].to_padded_tensor(0.0).sum(dim=1),
        column_values(data["uid"]),
        mask,
        fit_width(attention, mask.size(1)),
        **asdict(settings),
    )
    return response_to_nested(advantages, ragged_mask), stats


def origin_metrics(
    records: Sequence[Mapping[str, Any]], group_ids: Sequence[Hashable], settings: VapoConfig
) -> dict[str, float]:
    """What a step's advantages come from, from the records of its responses.

    A KL in the reward is left out here.
    """
    weights = settings.reward
    parts = [record["reward"] for record in records]
    plain = [
        weights.accuracy_weight * part["accuracy"] + weights.format_weight * part["format"]
        for part in parts
    ]
    origin = advantage_origin(
        torch.tensor([part["total"] for part in parts]),
        torch.tensor(plain),
        torch.tensor([part["accuracy"] for part in parts]),
        group_ids,
        normalize_by_std=settings.advantage.normalize_by_std,
    )
    return {f"vapo/advantage/{name}": value for name, value in asdict(origin).items()}
