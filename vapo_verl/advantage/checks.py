"""Refusals of the estimator: what a caller can get wrong, said with the fix."""

from collections.abc import Sized

from torch import Tensor

from vapo_verl.config import ATTENTION_MODES


def check_settings(attention_coef: float, attention_mode: str, num_bins: int) -> None:
    """Refuse settings outside their range (`vapo.advantage.*`)."""
    if not 0 <= attention_coef < 1:
        raise ValueError(f"attention_coef={attention_coef}: give 0 (GRPO) or more, below 1")
    if attention_mode not in ATTENTION_MODES:
        raise ValueError(f"attention_mode={attention_mode!r}: pick one of {ATTENTION_MODES}")
    if num_bins < 1:
        raise ValueError(f"num_bins={num_bins}: give 1 or more bins of progress")


def check_batch(
    rewards: Tensor, group_ids: Sized, response_mask: Tensor, visual_attention: Tensor | None
) -> None:
    """Refuse arrays of different batches, and rewards that would spoil a whole group."""
    shape = tuple(response_mask.shape)
    if tuple(rewards.shape) != shape[:1] or len(group_ids) != len(rewards) or len(shape) != 2:
        raise ValueError(
            f"rewards {tuple(rewards.shape)}, group_ids [{len(group_ids)}] and response_mask "
            f"{shape} disagree: give [B], [B] and [B, T]"
        )
    if not rewards.isfinite().all():
        raise ValueError(f"rewards holds {rewards[~rewards.isfinite()][0]}: give finite rewards")
    if visual_attention is not None and tuple(visual_attention.shape) != shape:
        raise ValueError(
            f"visual_attention {tuple(visual_attention.shape)} is not response_mask's {shape}: "
            "pad it as the response, and average layers first"
        )
