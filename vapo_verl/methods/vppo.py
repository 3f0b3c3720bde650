"""VPPO (arXiv 2510.09285): only the tokens that depend on the image are trained.

The visual dependency of a token is the KL of the policy on the image to the policy on a masked
image, of which a fraction of the patches is black, estimated by the sampled token:

    s_t = r - log r - 1,  r = pi(o_t | masked image) / pi(o_t | image)

    m_t = 1 for the ceil(k T) tokens of a response with the largest s_t, 0 for the others
    S = mean_t s_t,  U = (S - min S) / (max S - min S) over the batch
    alpha = beta + (1 - beta) U / mean U, so that its mean is 1
    A_t <- A_t alpha m_t

The policy loss is a mean over all tokens, those with m_t = 0 included, as in the released code. An
entropy penalty eta (-log pi(o_t)) of all tokens is added to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vapo_verl.methods import Method, StepTokens, kl_estimate, require

PerToken = Float[Tensor, "batch response"]
PerResponse = Float[Tensor, "batch"]
TokenMask = Bool[Tensor, "batch response"]
FLAT = 1e-6
"""Responses whose mean dependencies differ by less count as equal, as in the released code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vppo(Method):
    """Defaults are those of the released 7B script."""

    needs_actor_log_probs: ClassVar[bool] = True
    weighs_tokens: ClassVar[bool] = True

    top_fraction: float = 0.4
    """k; 1 trains all tokens."""
    response_min: float = 0.9
    """beta: the weight of the response that depends least on the image; 1 weighs all alike."""
    masked: float = 0.5
    """Probability of a patch to be black."""
    entropy_coef: float = 0.06
    """eta."""

    def __post_init__(self) -> None:
        require(0 < self.top_fraction <= 1, "top_fraction", self.top_fraction, "above 0, to 1")
        require(0 <= self.response_min <= 1, "response_min", self.response_min, "0 to 1")
        require(0 < self.masked <= 1, "masked", self.masked, "above 0, to 1")
        require(self.entropy_coef >= 0, "entropy_coef", self.entropy_coef, "0 or more")

    @property
    def mask_fraction(self) -> float:
        """`masked`."""
        return self.masked

    @property
    def adds_losses(self) -> bool:
        return self.entropy_coef > 0

    def token_weights(self, tokens: StepTokens) -> tuple[Tensor, dict[str, float]]:
        """alpha m_t [B, T], and ``vapo/vppo/*``."""
        assert tokens.masked_log_probs is not None
        valid = tokens.response_mask
        dependency = kl_estimate(tokens.old_log_probs, tokens.masked_log_probs).double()
        chosen = top_tokens(dependency, valid, self.top_fraction)
        alpha = response_factor(dependency, valid, self.response_min)
        present = valid.any(dim=1)
        metrics = {
            "dependency": _mean(dependency[valid]),
            "dependency_trained": _mean(dependency[chosen]),
            "dependency_left_out": _mean(dependency[valid & ~chosen]),
            "trained_fraction": _mean(chosen[valid]),
            "response_weight_max": float(alpha[present].max()) if present.any() else 1.0,
        }
        weights = alpha[:, None] * chosen
        return weights, {f"vapo/vppo/{name}": value for name, value in metrics.items()}

    def token_losses(self, log_probs: Tensor, masked_log_probs: Tensor) -> Mapping[str, Tensor]:
        """The entropy penalty."""
        return {"entropy": -self.entropy_coef * log_probs}


def top_tokens(dependency: PerToken, valid: TokenMask, fraction: float) -> TokenMask:
    """m: ceil(fraction * T) tokens of each response, the earlier ones of equal values."""
    count = (valid.sum(dim=1, keepdim=True).double() * fraction - 1e-9).ceil()  # 0.2 * 35 > 7
    order = dependency.masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    return valid & (rank < count)


def response_factor(dependency: PerToken, valid: TokenMask, least: float) -> PerResponse:
    """alpha of the responses with tokens; 1 for the others, and where S does not differ."""
    present = valid.any(dim=1)
    factor = torch.ones_like(dependency[:, 0])
    mean = (dependency * valid).sum(dim=1)[present] / valid.sum(dim=1)[present]
    if not len(mean) or mean.max() - mean.min() <= FLAT:
        return factor
    unit = (mean - mean.min()) / (mean.max() - mean.min())
    factor[present] = least + (1 - least) * unit / unit.mean()
    return factor


def _mean(values: Tensor) -> float:
    """The mean; 0 without values."""
    return float(values.double().mean()) if values.numel() else 0.0
