"""The record of a response on its way through the replay buffer."""

import json

import pytest

from tests.sample_records import anchor_result, sample_record
from vapo_verl.rollout.sample import SampleRecord

PROBED = sample_record(
    anchor_result(4, answer=True, label=True),
    anchor_result(9, answer=False, label=True, p_yes=0.25),
    times=(1.5, 2.5, 3.5, 4.5),
    reward={"format": 0.5, "perception": 0.25, "total": 1.525},
)


@pytest.mark.parametrize("sample", [sample_record(), PROBED])
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
    assert sample_record().reward_extra_info() == {"acc": 1.0, "format": 1.0}
