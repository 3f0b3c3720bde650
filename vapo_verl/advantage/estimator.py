"""veRL registration: `algorithm.adv_estimator=vapo`. Importing this module registers it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, register_adv_est

from vapo_verl.advantage.vapo import vapo_advantage

NAME = "vapo"


def compute_vapo_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Mapping[str, Any] | None = None,
    norm_adv_by_std_in_grpo: bool | None = None,
    normalize_by_std: bool | None = None,
    visual_attention: torch.Tensor | None = None,
    reward_baselines: torch.Tensor | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`vapo_advantage` in veRL's calling convention: (advantages, returns), both [B, T].

    veRL's `compute_advantage` gives the first four arguments (and `reward_baselines` where
    there are some, not used): that is GRPO on the summed reward. A trainer that has visual
    attention calls with it and the settings of `vapo.advantage` as keywords; a keyword that
    is neither raises a TypeError. Division by the std follows `normalize_by_std`, else
    `norm_adv_by_std_in_grpo`, else `config.norm_adv_by_std_in_grpo`, else veRL's default.

    As with veRL's GRPO there is no value function, and returns are the advantages.
    """
    if norm_adv_by_std_in_grpo is None:
        norm_adv_by_std_in_grpo = (config or AlgoConfig()).get("norm_adv_by_std_in_grpo", True)
    by_std = norm_adv_by_std_in_grpo if normalize_by_std is None else normalize_by_std
    advantages = vapo_advantage(
        token_level_rewards.sum(dim=-1),
        index,
        response_mask,
        visual_attention,
        normalize_by_std=by_std,
        **settings,
    )
    return advantages, advantages


def register() -> None:
    """Enter the estimator in veRL's registry; again, as on a reload, replaces our own entry.

    Raises:
        ValueError: someone else's estimator has the name.
    """
    entry = ADV_ESTIMATOR_REGISTRY.get(NAME)
    if entry is not None and entry.__module__ == compute_vapo_advantage.__module__:
        del ADV_ESTIMATOR_REGISTRY[NAME]
    register_adv_est(NAME)(compute_vapo_advantage)


register()
