"""VGPO (arXiv 2604.09349): tokens and responses that look at the image weigh more, late ones most.

With w_t the visual attention of token t = 0..T-1 of a response, the equations of the paper are

    v_t = w_t (1 + G_t beta t / (T - 1))                             (Eq. 5, 6)
    a_t = (v_t - min v) / (max v - min v)                            (Eq. 7)
    psi_t = 1 + a_t - mean a, held to [0.1, 2]                       (Eq. 8)
    phi = sum_t a_t, b = (phi - min phi) / (max phi - min phi)       (Eq. 9, 10)
    alpha = 1 + b - mean b, held to [0.9, 2]                         (Eq. 11)
    A_t <- A_t psi_t alpha

G_t is 1 for the fraction kappa of the last tokens (those from gamma T on) with the most attention,
and 0 for all others. The extrema and means of a are over a response, those of b over the responses
to a prompt.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vapo_verl.advantage.grpo import Groups
from vapo_verl.methods import Method, StepTokens, require

PerToken = Float[Tensor, "batch response"]
PerResponse = Float[Tensor, "batch"]
TokenMask = Bool[Tensor, "batch response"]
FLAT = 1e-6
"""A range below this fraction of the largest value is rounding."""
TOKEN_LIMITS, RESPONSE_LIMITS = (0.1, 2.0), (0.9, 2.0)
"""Limits of psi and of alpha, as in the released code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vgpo(Method):
    """Weights by attention; defaults are those of the released script."""

    needs_attention: ClassVar[bool] = True
    weighs_tokens: ClassVar[bool] = True

    strength: float = 0.3
    """beta: how much the last token's attention is raised."""
    tail_start: float = 0.5
    """gamma: where in a response the raised tokens begin."""
    tail_fraction: float = 0.2
    """kappa: fraction of the tail that is raised; at least one token is."""
    token_level: bool = True
    """Apply psi; with this and the next off, the step is GRPO."""
    response_level: bool = True
    """Apply alpha."""

    def __post_init__(self) -> None:
        require(self.strength >= 0, "strength", self.strength, "0 or more")
        require(0 <= self.tail_start < 1, "tail_start", self.tail_start, "0 or more, below 1")
        require(0 < self.tail_fraction <= 1, "tail_fraction", self.tail_fraction, "above 0, to 1")

    def token_weights(self, tokens: StepTokens) -> tuple[Tensor, dict[str, float]]:
        """psi_t alpha [B, T], and ``vapo/vgpo/*``."""
        valid = tokens.response_mask
        attention = tokens.visual_attention.double()
        seen = valid & attention.isfinite()
        raised = _raised(attention, seen, valid, self.tail_start, self.tail_fraction)
        scaled = _unit(attention * (1 + self.strength * raised * _position(valid)), seen)
        psi, alpha = token_factor(scaled, seen), response_factor(scaled, seen, tokens.group_ids)
        used, known = psi[valid], seen.any(dim=1)
        metrics = {
            "token_weight_std": float(used.std(correction=0)) if used.numel() else 0.0,
            "response_weight_min": float(alpha[known].min()) if known.any() else 1.0,
            "response_weight_max": float(alpha[known].max()) if known.any() else 1.0,
            "raised_fraction": float(raised[valid].mean()) if used.numel() else 0.0,
            "responses_without_attention": float((valid.any(dim=1) & ~known).sum()),
        }
        weights = torch.ones_like(psi)
        if self.token_level:
            weights = weights * psi
        if self.response_level:
            weights = weights * alpha[:, None]
        return weights, {f"vapo/vgpo/{name}": value for name, value in metrics.items()}


def token_factor(scaled: PerToken, seen: TokenMask) -> PerToken:
    """psi (Eq. 8); 1 for a token without attention."""
    mean = (scaled * seen).sum(dim=1, keepdim=True) / seen.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(seen, (1 + scaled - mean).clamp(*TOKEN_LIMITS), 1.0)


def response_factor(
    scaled: PerToken, seen: TokenMask, group_ids: Iterable[Hashable]
) -> PerResponse:
    """alpha (Eq. 9 to 11) over the responses with attention; 1 for the others."""
    known = seen.any(dim=1)
    total = (scaled * seen).sum(dim=1)
    factor = torch.ones_like(total)
    for members in Groups.of(group_ids, scaled.device).members():
        members = members[known[members]]
        if len(members):
            part = total[members]
            unit = _unit(part[None], torch.ones_like(part[None], dtype=torch.bool))[0]
            factor[members] = (1 + unit - unit.mean()).clamp(*RESPONSE_LIMITS)
    return factor


def _position(valid: Tensor) -> Tensor:
    """t / (T - 1) of the valid tokens [B, T]."""
    order = (valid.cumsum(dim=1) - 1).clamp(min=0)
    return order.double() / (valid.sum(dim=1, keepdim=True) - 1).clamp(min=1)


def _raised(
    attention: Tensor, seen: Tensor, valid: Tensor, tail_start: float, fraction: float
) -> Tensor:
    """G [B, T]: 1 for the tokens of the tail whose attention is among its largest, ties included.

    The tail begins at token int(tail_start * T), as in the released code.
    """
    order = valid.cumsum(dim=1) - 1
    start = (valid.sum(dim=1, keepdim=True) * tail_start).long()
    tail = seen & (order >= start)
    size = tail.sum(dim=1)
    if not size.any():
        return torch.zeros_like(attention)
    count = (size * fraction).long().clamp(min=1)
    ranked = attention.masked_fill(~tail, -torch.inf).sort(dim=1, descending=True).values
    threshold = ranked.gather(1, (count - 1)[:, None])
    return (tail & (attention >= threshold)).double()


def _unit(values: Tensor, seen: Tensor) -> Tensor:
    """0 for the least seen value of a row, 1 for the most; 0 throughout where all are equal."""
    low = values.masked_fill(~seen, torch.inf).amin(dim=1, keepdim=True)
    high = values.masked_fill(~seen, -torch.inf).amax(dim=1, keepdim=True)
    spread = high - low
    flat = ~(spread > FLAT * high.abs())
    return torch.where(seen & ~flat, (values - low) / spread.where(~flat, 1.0), 0.0)
