"""What the rollout knows of one finished response beyond its tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vapo_verl.anchors.types import AnchorResult
from vapo_verl.config import RewardConfig
from vapo_verl.reward.components import RewardComponents
from vapo_verl.reward.perception import perception_score

Record = dict[str, Any]
"""Plain values only: it crosses process borders inside veRL's ``extra_fields``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleTimes:
    """Seconds since the epoch, which the workers of several nodes share."""

    started_at: float
    generated_at: float
    """The response was complete."""
    asked_at: float
    """Its accuracy was known; its probes, if any, went out."""
    probed_at: float
    """The last probe's answer was there; without probes the same as asked_at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOutcome:
    """Rewards and anchors of one response."""

    reward: RewardComponents
    anchors: Sequence[AnchorResult]
    response_length: int
    num_claims: int
    """Claims of the row that fit the context budget."""
    num_claims_skipped: int
    """Claims that were too long to be asked."""
    times: SampleTimes
    image_end: int
    """Prompt tokens up to the end of the last image; 0 without one."""
    num_images: int

    def record(self) -> Record:
        """This outcome as plain values, one mapping per anchor."""
        plain = {name: getattr(self, name) for name in ("response_length", "num_claims")}
        return {
            **plain,
            "num_claims_skipped": self.num_claims_skipped,
            **asdict(self.times),
            "image_end": self.image_end,
            "num_images": self.num_images,
            "reward": asdict(self.reward),
            "anchors": [_anchor_record(result) for result in self.anchors],
        }


def _anchor_record(result: AnchorResult) -> Record:
    return {
        **asdict(result.anchor),
        "answer": result.answer,
        "correct": result.correct,
        "p_yes": result.p_yes,
        "num_prompt_tokens": result.num_prompt_tokens,
        "num_cached_tokens": result.num_cached_tokens,
    }


def anchored_perception(
    results: Sequence[AnchorResult], response_length: int, settings: RewardConfig
) -> float:
    """R_perc of the probed anchors (Eq. 4); 0 when nothing was probed."""
    return perception_score(
        [result.p_label if settings.soft else result.correct for result in results],
        [result.anchor.position for result in results],
        response_length,
        settings.late_emphasis,
        settings.chance_corrected,
    )


def reward_extra_info(record: Mapping[str, Any]) -> dict[str, float]:
    """The parts of the reward under veRL's names, for its validation metrics and group filters.

    Perception is left out where nothing was probed, so that its mean is that of probed responses.
    """
    reward = record["reward"]
    info = {"acc": reward["accuracy"], "format": reward["format"]}
    return {**info, "perception": reward["perception"]} if record["anchors"] else info
