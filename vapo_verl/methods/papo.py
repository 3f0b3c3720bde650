"""PAPO (arXiv 2507.06448): the policy is rewarded for depending on the image.

With pi the policy on the image and m the policy before the update on a masked image, of which a
fraction of the patches is black, a token o_t adds to the loss

    - gamma KL_t + eta (-log pi(o_t)) + eta (-log m(o_t)),   KL_t = r - log r - 1,  r = m / pi

KL_t is the implicit perception loss; its sign makes it grow. The other two are the double entropy
loss, which keeps it from growing by random text; both are estimated by the sampled token. m has no
gradient, so its entropy does not change the training.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from vapo_verl.methods import Method, kl_estimate, require


@dataclass(frozen=True, slots=True, kw_only=True)
class Papo(Method):
    """Defaults are those of the released GRPO script for 7B."""

    coef: float = 0.02
    """gamma; with this and the next 0, the step is GRPO and there is no masked view."""
    entropy_coef: float = 0.05
    """eta, of both entropies."""
    masked: float = 0.6
    """Probability of a patch to be black."""

    def __post_init__(self) -> None:
        require(self.coef >= 0, "coef", self.coef, "0 or more")
        require(self.entropy_coef >= 0, "entropy_coef", self.entropy_coef, "0 or more")
        require(0 < self.masked <= 1, "masked", self.masked, "above 0, to 1")

    @property
    def mask_fraction(self) -> float:
        """0 where the masked view adds nothing."""
        return self.masked if self.adds_losses else 0.0

    @property
    def adds_losses(self) -> bool:
        return self.coef > 0 or self.entropy_coef > 0

    def token_losses(self, log_probs: Tensor, masked_log_probs: Tensor) -> Mapping[str, Tensor]:
        """The three terms."""
        masked_log_probs = masked_log_probs.detach()
        return {
            "perception": -self.coef * kl_estimate(log_probs, masked_log_probs),
            "entropy": -self.entropy_coef * log_probs,
            "masked_entropy": -self.entropy_coef * masked_log_probs,
        }
