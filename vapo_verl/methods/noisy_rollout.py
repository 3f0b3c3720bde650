"""NoisyRollout (arXiv 2504.13055): some responses are generated from a noised image.

All responses to a prompt are one group, and the policy is updated on the image as it is. The noise
is that of a diffusion model after k steps, on pixel values x in [0, 1]:

    x_k = sqrt(q_k) x + sqrt(1 - q_k) e,  e ~ N(0, 1),  held to [0, 1]
    q_k = prod_(i <= k) (1 - b_i),  b_i = 1e-5 + (5e-3 - 1e-5) sigmoid(-6 + 12 i / 999)

It fades over the steps s = 1..S of a run:

    k(s) = int(K (1 - sigmoid(lambda (s - s_0) / S)))
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vapo_verl.methods import Method, Progress, require

NUM_NOISE_STEPS = 1000
_BETAS = 1e-5 + (5e-3 - 1e-5) / (1 + np.exp(-np.linspace(-6, 6, NUM_NOISE_STEPS)))
KEPT = np.cumprod(1 - _BETAS)
"""q_k [1000]: how much of an image's variance is left after k steps of noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyRollout(Method):
    """Defaults are those of the released script for Geometry3K."""

    needs_actor_log_probs: ClassVar[bool] = True

    noisy_fraction: float = 0.5
    """Fraction of a prompt's responses, rounded down: the last ones. 0 is GRPO."""
    noise_step: int = 500
    """K, up to 999: how strong the noise is before it fades. 0 is GRPO."""
    steepness: float = 30.0
    """lambda: how fast the noise fades."""
    mid_step: float = 40.0
    """s_0: the step at which half of the noise is left."""

    def __post_init__(self) -> None:
        require(0 <= self.noisy_fraction <= 1, "noisy_fraction", self.noisy_fraction, "0 to 1")
        allowed = f"0 to {NUM_NOISE_STEPS - 1}"
        require(0 <= self.noise_step < NUM_NOISE_STEPS, "noise_step", self.noise_step, allowed)
        require(self.steepness >= 0, "steepness", self.steepness, "0 or more")

    @property
    def changes_images(self) -> bool:
        return self.noisy_fraction > 0 and self.noise_step > 0

    def noise_at(self, progress: Progress) -> int:
        """k(s)."""
        assert progress.total_steps > 0, "the trainer sets it before the rollout"
        exponent = self.steepness * (progress.step - self.mid_step) / progress.total_steps
        return int(self.noise_step / (1 + math.exp(min(exponent, 700.0))))

    def changes_image(self, sample: int, group_size: int, progress: Progress) -> bool:
        """Whether the response is one of the last, and there is noise at this step."""
        is_noisy = sample >= group_size - int(group_size * self.noisy_fraction)
        return is_noisy and self.noise_at(progress) > 0

    def changed_image(
        self, image: np.ndarray, progress: Progress, rng: np.random.Generator
    ) -> np.ndarray:
        """The image with the noise of this step, uint8 as it is."""
        return noised(image, self.noise_at(progress), rng)

    def response_metrics(
        self,
        samples: Sequence[int],
        accuracies: Sequence[float],
        group_size: int,
        asked: Sequence[Progress],
    ) -> dict[str, float]:
        """The mean noise, and the accuracy on images with and without noise (nan for none)."""
        by_kind: dict[bool, list[float]] = {True: [], False: []}
        for sample, accuracy, at in zip(samples, accuracies, asked, strict=True):
            by_kind[self.changes_image(sample, group_size, at)].append(accuracy)
        return {
            "vapo/noisy_rollout/noise_step": _mean([float(self.noise_at(at)) for at in asked]),
            "vapo/noisy_rollout/accuracy_noisy": _mean(by_kind[True]),
            "vapo/noisy_rollout/accuracy_clean": _mean(by_kind[False]),
        }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def noised(image: np.ndarray, noise_step: int, rng: np.random.Generator) -> np.ndarray:
    """x_k of an image uint8 [...], rounded to uint8."""
    kept = KEPT[noise_step]
    noise = rng.standard_normal(image.shape)
    values = math.sqrt(kept) * (image / 255.0) + math.sqrt(1 - kept) * noise
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)
