"""The record of a response on its way through the replay buffer."""

import json

import pytest

from vapo_verl.anchors import Anchor, AnchorResult
from vapo_verl.reward.components import RewardComponents
from vapo_verl.rollout.sample import SampleRecord, SampleTimes


def result(position, *, answer, label):
    return AnchorResult(
        anchor=Anchor(position=position, claim="3 is red", label=label, own_boundary=True),
        answer=answer,
        p_yes=0.75 if answer else 0.25,
        num_prompt_tokens=100,
        num_cached_tokens=96,
    )


def record(*anchors):
    return SampleRecord(
        reward=RewardComponents(accuracy=1.0, format=0.5, perception=0.25, total=1.525),
        anchors=anchors,
        response_length=30,
        num_claims=20,
        num_claims_skipped=1,
        times=SampleTimes(started_at=1.5, generated_at=2.5, asked_at=3.5, probed_at=4.5),
        image_end=64,
        num_images=1,
    )


PROBED = record(result(4, answer=True, label=True), result(9, answer=False, label=True))


@pytest.mark.parametrize("sample", [record(), PROBED])
def test_it_comes_back_as_it_went(sample):
    plain = json.loads(json.dumps(sample.to_plain()))  # plain values only
    assert SampleRecord.from_plain(plain) == sample


def test_plain_anchors_and_times_are_flat():
    plain = PROBED.to_plain()
    assert plain["reward"]["total"] == 1.525
    assert (plain["started_at"], plain["probed_at"]) == (1.5, 4.5)
    assert plain["anchors"][1] == {
        "position": 9,
        "claim": "3 is red",
        "label": True,
        "own_boundary": True,
        "answer": False,
        "p_yes": 0.25,
        "num_prompt_tokens": 100,
        "num_cached_tokens": 96,
        "correct": False,
    }
    assert "times" not in plain and "anchor" not in plain["anchors"][0]


def test_a_missing_value_is_named():
    plain = PROBED.to_plain()
    del plain["anchors"][0]["label"]
    with pytest.raises(KeyError, match="label"):
        SampleRecord.from_plain(plain)


def test_verl_gets_perception_only_where_it_was_probed():
    assert PROBED.reward_extra_info() == {"acc": 1.0, "format": 0.5, "perception": 0.25}
    assert record().reward_extra_info() == {"acc": 1.0, "format": 0.5}
