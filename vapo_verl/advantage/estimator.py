"""veRL registration: `algorithm.adv_estimator=vapo`. Importing this module registers it.

veRL's calling convention has no place for visual attention, reward parts and `vapo.advantage.*`.
The trainer passes them around veRL's call, with :func:`batch_inputs`, and reads the statistics
back. An estimator of another package reads them by :func:`current_inputs`: docs/extending.md.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, register_adv_est

from vapo_verl.advantage.grpo import RewardParts
from vapo_verl.advantage.vapo import AdvantageStats, vapo_advantage
from vapo_verl.config import AdvantageConfig

NAME = "vapo"


@dataclass(slots=True, kw_only=True)
class BatchInputs:
    """Inputs that veRL does not pass to an estimator, for one batch."""

    settings: AdvantageConfig
    """``vapo.advantage.*``"""
    visual_attention: torch.Tensor | None
    """[B, T], rows and width those of the response mask; nan where unknown: prompts without images,
    padding, and all of it without ``vapo.attention.enabled``."""
    parts: RewardParts | None = None
    """Parts of the rewards [B], nan for a padding row; None for ``vapo`` without `decoupled`."""
    stats: AdvantageStats | None = None
    """Statistics of ``vapo``; None until it has been called."""


_batch_inputs: ContextVar[BatchInputs] = ContextVar("vapo_batch_inputs")


@contextmanager
def batch_inputs(
    settings: AdvantageConfig,
    visual_attention: torch.Tensor | None,
    parts: RewardParts | None = None,
) -> Iterator[BatchInputs]:
    """Inputs of the estimator for the one call that veRL makes inside this context."""
    inputs = BatchInputs(settings=settings, visual_attention=visual_attention, parts=parts)
    token = _batch_inputs.set(inputs)
    try:
        yield inputs
    finally:
        _batch_inputs.reset(token)


def current_inputs() -> BatchInputs:
    """Inputs that veRL does not pass to the estimator it is calling now, in the order of its rows.

    Call it inside the function of an estimator that your package registers; veRL's own estimators
    have none.

    Raises:
        LookupError: not called by this package's trainer.
    """
    inputs = _batch_inputs.get(None)
    if inputs is None:
        raise LookupError(
            "visual attention and reward parts are available while the trainer of vapo_verl calls "
            "an estimator that veRL does not bring; in a test, call it inside of "
            "vapo_verl.advantage.estimator.batch_inputs(...)"
        )
    return inputs


def compute_vapo_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Mapping[str, Any] | None = None,
    reward_baselines: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`vapo_advantage` in veRL's calling convention: (advantages, returns), both [B, T].

    The reward of a response is the sum of its token rewards. Settings come from
    :func:`batch_inputs`. Outside of it, as in another trainer, this is GRPO on the reward, divided
    by the std if `config` (veRL's `algorithm.*`) says so. As with veRL's GRPO there is no value
    function, and returns are the advantages. `reward_baselines` are not used.
    """
    inputs = _batch_inputs.get(None)
    if inputs is None:
        by_std = (config or AlgoConfig()).get("norm_adv_by_std_in_grpo", True)
        inputs = BatchInputs(
            settings=AdvantageConfig(normalize_by_std=by_std), visual_attention=None
        )
    assert inputs.stats is None, "one batch is estimated once"

    def keep(stats: AdvantageStats) -> None:
        inputs.stats = stats

    advantages = vapo_advantage(
        token_level_rewards.sum(dim=-1),
        index,
        response_mask,
        inputs.visual_attention,
        parts=inputs.parts,
        **asdict(inputs.settings),
        on_stats=keep,
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
