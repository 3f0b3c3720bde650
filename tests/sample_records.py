"""Records of responses, with defaults for whatever a test does not look at."""

from typing import Any

from vapo_verl.anchors import Anchor, AnchorResult
from vapo_verl.reward.components import RewardComponents
from vapo_verl.rollout.sample import SampleRecord, SampleTimes


def anchor_result(
    position: int = 1,
    *,
    claim: str = "3 is red",
    label: bool = True,
    answer: bool = True,
    own_boundary: bool = True,
    **values: Any,
) -> AnchorResult:
    """An answered anchor; `values` are further fields of `AnchorResult`."""
    defaults = {"p_yes": float(answer), "num_prompt_tokens": 100, "num_cached_tokens": 96}
    return AnchorResult(
        anchor=Anchor(position=position, claim=claim, label=label, own_boundary=own_boundary),
        answer=answer,
        **{**defaults, **values},
    )


def sample_record(
    *anchors: AnchorResult,
    times: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
    reward: dict[str, float] | None = None,
    **values: Any,
) -> SampleRecord:
    """A record; `times` in the order of `SampleTimes`, `values` are fields of `SampleRecord`."""
    started_at, generated_at, asked_at, probed_at = times
    components = {"accuracy": 1.0, "format": 1.0, "perception": 0.5, "total": 2.05}
    defaults = {
        "response_length": 30,
        "num_claims": 20,
        "num_claims_skipped": 0,
        "image_end": 64,
        "num_images": 1,
        "min_policy_version": 0,
        "max_policy_version": 0,
        "probe_policy_version": 0,
    }
    return SampleRecord(
        reward=RewardComponents(**{**components, **(reward or {})}),
        anchors=anchors,
        times=SampleTimes(
            started_at=started_at,
            generated_at=generated_at,
            asked_at=asked_at,
            probed_at=probed_at,
        ),
        **{**defaults, **values},
    )
