"""From fields of the replay buffer to advantages and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from verl.workers.utils.padding import response_to_nested

from vapo_verl.advantage.vapo import AdvantageStats, vapo_advantage_with_stats
from vapo_verl.config import AdvantageConfig
from vapo_verl.trainer.replay_fields import column_values, fit_width


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
