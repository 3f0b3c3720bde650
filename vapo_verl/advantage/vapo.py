"""The VAPO advantage: GRPO on the perception reward, weighted per token by visual attention."""

from collections.abc import Callable, Hashable, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from vapo_verl.advantage.grpo import (
    GRPO_EPSILON,
    Groups,
    RewardParts,
    decoupled_advantage,
    mean_by,
    outcome_advantage,
)
from vapo_verl.config import ATTENTION_MODES, NORMALIZATIONS

Rewards = Float[Tensor, "batch"]
PerToken = Float[Tensor, "batch response"]
Mask = Shaped[Tensor, "batch response"]
GroupIds = Sequence[Hashable] | np.ndarray | Tensor
FLAT_SPREAD = 1e-6
"""A group's spread below this fraction of its largest attention is rounding: no credit moves."""
PARTS_TOLERANCE = 1e-4
"""Tolerance of a reward against the sum of its parts, for rounding."""
PerResponse = Float[Tensor, "batch"]
TokenMask = Bool[Tensor, "batch response"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageStats:
    """Statistics of a batch; the trainer logs them under `vapo/advantage/`.

    Padding rows, which have no token, are not counted.
    """

    num_groups_of_one: int
    """Groups with a single response, whose advantage is its bare reward."""
    num_groups_without_spread: int
    """Groups of two or more with equal rewards: their advantage is 0."""
    num_responses_without_attention: int
    """Responses with tokens, none of which has a visual attention: they get plain credit."""
    num_nan_attention_tokens: int
    """Valid tokens without a finite visual attention, those of the line above included."""
    weight_min: float
    weight_max: float
    weight_std: float
    """Spread of the credit weights over all valid tokens; 0 is plain GRPO."""


def vapo_advantage(
    rewards: Rewards,
    group_ids: GroupIds,
    response_mask: Mask,
    visual_attention: PerToken | None = None,
    *,
    parts: RewardParts | None = None,
    normalization: str = "total",
    attention_coef: float = 0.0,
    attention_mode: str = "focus",
    normalize_by_std: bool = True,
    num_bins: int = 8,
    epsilon: float = GRPO_EPSILON,
    on_stats: Callable[[AdvantageStats], None] | None = None,
) -> PerToken:
    """A_it = A_i * w_it, with A_i GRPO's advantage and w_it of mean 1 over a response.

    w_it = 1 + c * tanh((a_it - m_g(u_t)) / s_g), over its mean: a_it is the visual attention
    ratio, m_g the group's mean of it in `num_bins` bins of the progress u_t = t / T_i, s_g the
    spread around that curve. The sum of A_it over a response is A_i * T_i, as in GRPO.

    Args:
        rewards: R_i, one per response (Eq. 5 of arXiv 2509.25848).
        group_ids: one hashable per response, equal for responses to the same prompt.
        response_mask: 1 for the response's tokens, 0 for padding, which may be anywhere.
        visual_attention: a_it, nan where there is none (no image, not captured); or None.
        parts: of the rewards; needed by `decoupled`. Where a base is nan, as that of a padding row,
            the reward is all base.
        normalization: of A_i. "total": of R_i, as the paper; "decoupled": of perception by itself,
            see :func:`vapo_verl.advantage.grpo.decoupled_advantage`.
        attention_coef: c in [0, 1). 0 is GRPO exactly, as in the paper.
        attention_mode: "focus" gives tokens that looked more credit and more blame; "grounded"
            multiplies the tanh by sign(A_i): credit to tokens that looked, blame to tokens that did
            not.
        normalize_by_std: divide A_i by the group's std, as GRPO; off is Dr.GRPO.
        num_bins: progress bins of the mean curve.
        epsilon: added to the std.
        on_stats: called with the statistics of this batch.

    Edge cases: a group of one has its reward as advantage, a group of equal rewards 0; a token
    without attention has weight 1 before the rescale; a response or a group without attention,
    or a group whose attention does not vary, gets plain credit; an empty response is all 0.

    Raises:
        ValueError: shapes that disagree, a reward that is not finite, an unknown mode, c outside
            [0, 1), no bins, parts that are missing or do not add up to the rewards.
    """
    check_settings(attention_coef, attention_mode, num_bins)
    check_batch(rewards, group_ids, response_mask, visual_attention)
    valid = response_mask.bool()
    groups = Groups.of(group_ids, rewards.device)
    options: dict[str, Any] = {"normalize_by_std": normalize_by_std, "epsilon": epsilon}
    if normalization == "decoupled":
        outcome = decoupled_advantage(checked_parts(parts, rewards), groups, **options).double()
    elif normalization == "total":
        outcome = outcome_advantage(rewards, groups, **options).double()
    else:
        raise ValueError(f"normalization={normalization!r}: pick one of {NORMALIZATIONS}")
    if visual_attention is None:
        visual_attention = torch.full_like(valid, torch.nan, dtype=torch.float64)
    attention = visual_attention.to(outcome)
    seen = valid & attention.isfinite()
    if attention_coef:
        relative = relative_attention(attention, seen, valid, groups, num_bins)
        direction = outcome.sign() if attention_mode == "grounded" else torch.ones_like(outcome)
        weights = credit_weights(relative, valid, direction, attention_coef)
    else:  # all are 1: nothing to compute from a whole batch
        weights = valid.to(outcome)
    if on_stats is not None:
        on_stats(_stats(rewards, groups, valid, seen, weights))
    return (outcome[:, None] * weights).to(rewards.dtype)


def _stats(
    rewards: Tensor, groups: Groups, valid: Tensor, seen: Tensor, weights: Tensor
) -> AdvantageStats:
    with_tokens = torch.bincount(groups.index[valid.any(dim=1)], minlength=groups.num_groups) > 0
    alone = groups.sizes() == 1
    used = weights[valid] if valid.any() else weights.new_ones(1)
    return AdvantageStats(
        num_groups_of_one=int((with_tokens & alone).sum()),
        num_groups_without_spread=int((with_tokens & ~alone & ~groups.unequal(rewards)).sum()),
        num_responses_without_attention=int((valid.any(dim=1) & ~seen.any(dim=1)).sum()),
        num_nan_attention_tokens=int((valid & ~seen).sum()),
        weight_min=float(used.min()),
        weight_max=float(used.max()),
        weight_std=float(used.std(correction=0)),
    )


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


def checked_parts(parts: RewardParts | None, rewards: Tensor) -> RewardParts:
    """The parts on the rewards' device, with the reward as base where that is nan.

    Raises:
        ValueError: there are none, or they do not add up to the rewards, as with a KL penalty in
            the reward.
    """
    if parts is None:
        raise ValueError("normalization='decoupled' needs the parts of the rewards; pass parts")
    base, perception = parts.base.to(rewards), parts.perception.to(rewards)
    if base.shape != rewards.shape or perception.shape != rewards.shape:
        raise ValueError(
            f"parts of base {tuple(base.shape)} and perception {tuple(perception.shape)} are not "
            f"those of rewards {tuple(rewards.shape)}: give [B] each"
        )
    base = torch.where(base.isnan(), rewards, base)
    parts = RewardParts(base=base, perception=perception, weight=parts.weight)
    wrong = (parts.rewards() - rewards).abs() > PARTS_TOLERANCE * (1 + rewards.abs())
    if wrong.any():
        raise ValueError(
            f"a reward of {rewards[wrong][0]:.4f} is not the sum of its parts, "
            f"{parts.rewards()[wrong][0]:.4f}: with normalization='decoupled' nothing else may "
            "change it, such as algorithm.use_kl_in_reward"
        )
    return parts


def credit_weights(
    relative: PerToken, valid: TokenMask, direction: PerResponse, coef: float
) -> PerToken:
    """w_it = 1 + c * d_i * tanh(relative_it), over its mean on the response's valid tokens.

    The mean of 1 keeps a response's total credit; a padded position has weight 0. The
    direction d_i is 1, or the sign of the response's advantage.
    """
    raw = (1 + coef * direction[:, None] * relative.tanh()) * valid
    mean = raw.sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(valid, raw / mean, 0.0)


def relative_attention(
    attention: PerToken, seen: TokenMask, valid: TokenMask, groups: Groups, num_bins: int
) -> PerToken:
    """(a_it - m_g(u_t)) / s_g: attention against the siblings' at the same progress.

    m_g is the mean over the group's seen tokens in each of `num_bins` progress bins, s_g the
    root mean square of the residual. The result is 0, a raw weight of 1, for a token that was not
    seen (attention nan, or padded) and for a group without spread.
    """
    group = groups.index[:, None].expand_as(valid)[seen]
    cell = group * num_bins + bins_before_token(valid, num_bins)[seen]
    values = attention[seen]
    residual = values - mean_by(cell, values, groups.num_groups * num_bins)[cell]
    spread = mean_by(group, residual**2, groups.num_groups).sqrt()
    largest = values.new_zeros(groups.num_groups).scatter_reduce(0, group, values.abs(), "amax")
    flat = spread <= FLAT_SPREAD * largest
    relative = torch.where(flat[group], 0.0, residual / spread.where(~flat, 1.0)[group])
    return torch.zeros_like(attention).masked_scatter(seen, relative)


def bins_before_token(valid: TokenMask, num_bins: int) -> Tensor:
    """Bin of u_t = t / T_i [B, T], t = 0.. over the response's T_i valid tokens, in integers.

    u_t is the part of the response before the token. The attention curves and metrics count the
    token itself, (t + 1) / T: see `vapo_verl.analysis.position_curves.progress_bins`. The value
    at a position that is not valid is undefined.
    """
    order = valid.cumsum(dim=1) - 1
    return order * num_bins // valid.sum(dim=1, keepdim=True).clamp(min=1)
