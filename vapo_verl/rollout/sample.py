"""The outcome of a response's answer, and the record of its reward, anchors and times.

The record travels from the agent loop to the trainer through the replay buffer, as plain values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from vapo_verl.anchors.probe import Anchor, AnchorResult
from vapo_verl.config import RewardConfig
from vapo_verl.reward.components import RewardComponents
from vapo_verl.reward.perception import perception_score

RECORD_FIELD = "vapo"
"""Key of the plain record in veRL's ``extra_fields``."""
Part = TypeVar("Part")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The score of an answer."""

    score: float
    """R_acc, in [0, 1]."""
    correct: bool
    """Opens the gate of the anchors, and lets the response earn R_perc."""
    info: Mapping[str, float | str] = field(default_factory=dict)
    """What a user's function returned beside its score."""

    @classmethod
    def of(cls, accuracy: float) -> "Outcome":
        """The outcome of a rule: 1 is correct."""
        return cls(score=accuracy, correct=accuracy == 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleTimes:
    """Seconds since the epoch, which the workers of several nodes share."""

    started_at: float
    generated_at: float
    """The response was complete."""
    asked_at: float
    """Its accuracy was known; its probes, if any, were sent."""
    probed_at: float
    """The last probe's answer arrived; without probes the same as asked_at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRecord:
    """Rewards and anchors of one response."""

    reward: RewardComponents
    anchors: tuple[AnchorResult, ...]
    response_length: int
    num_claims: int
    """Claims of the row that fit the context budget."""
    num_claims_skipped: int
    """Claims that were too long to be asked."""
    times: SampleTimes
    image_end: int
    """Prompt tokens up to the end of the last image; 0 without one."""
    num_images: int
    min_policy_version: int | None
    """Step that made the oldest policy that generated a token of the response."""
    max_policy_version: int | None
    """Step of the newest such policy. Both are None where the server did not say."""
    probe_policy_version: int | None
    """Step of the policy that answered the probes; None without probes."""

    def to_plain(self) -> dict[str, Any]:
        """Mappings, lists and numbers only; times and anchors are flat."""
        plain = asdict(self)
        times = plain.pop("times")
        anchors = [
            {**anchor.pop("anchor"), **anchor, "correct": result.correct}
            for anchor, result in zip(plain["anchors"], self.anchors, strict=True)
        ]
        return {**plain, **times, "anchors": anchors}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "SampleRecord":
        """The inverse of :meth:`to_plain`."""
        return _part(
            cls,
            plain,
            reward=_part(RewardComponents, plain["reward"]),
            anchors=tuple(
                _part(AnchorResult, anchor, anchor=_part(Anchor, anchor))
                for anchor in plain["anchors"]
            ),
            times=_part(SampleTimes, plain),
        )

    def reward_extra_info(self) -> dict[str, float]:
        """Parts of the reward under veRL's names, for its validation metrics and group filters.

        Without probes perception is left out, so that its mean is that of probed responses.
        """
        info = {"acc": self.reward.accuracy, "format": self.reward.format}
        return {**info, "perception": self.reward.perception} if self.anchors else info


def _part(cls: type[Part], plain: Mapping[str, Any], **typed: Any) -> Part:
    """A dataclass from the plain values of its fields, except those that are `typed`."""
    names = [each.name for each in fields(cls)]  # type: ignore[arg-type]
    return cls(**{name: typed[name] if name in typed else plain[name] for name in names})


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
