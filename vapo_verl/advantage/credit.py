"""Per-token credit from visual attention: who looked at the image more than the siblings did."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vapo_verl.advantage.groups import Groups, mean_by

FLAT_SPREAD = 1e-6
"""A group's spread below this share of its largest attention is rounding: no credit moves."""

PerResponse = Float[Tensor, "batch"]
PerToken = Float[Tensor, "batch response"]
TokenMask = Bool[Tensor, "batch response"]


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
    root mean square of what is left. 0, so a raw weight of 1, for a token that was not seen
    (attention nan, or padded) and for a group without spread.
    """
    group = groups.index[:, None].expand_as(valid)[seen]
    cell = group * num_bins + progress_bins(valid, num_bins)[seen]
    values = attention[seen]
    residual = values - mean_by(cell, values, groups.num_groups * num_bins)[cell]
    spread = mean_by(group, residual**2, groups.num_groups).sqrt()
    largest = values.new_zeros(groups.num_groups).scatter_reduce(0, group, values.abs(), "amax")
    flat = spread <= FLAT_SPREAD * largest
    relative = torch.where(flat[group], 0.0, residual / spread.where(~flat, 1.0)[group])
    return torch.zeros_like(attention).masked_scatter(seen, relative)


def progress_bins(valid: TokenMask, num_bins: int) -> Tensor:
    """Bin of u_t = t / T_i [B, T], t = 0.. over the response's T_i valid tokens, in integers.

    The value at a position that is not valid means nothing.
    """
    order = valid.cumsum(dim=1) - 1
    return order * num_bins // valid.sum(dim=1, keepdim=True).clamp(min=1)
