"""Perception of the packaged model."""

import pytest

from tests.evaluation.probing_commands import run


@pytest.mark.slow
def test_responses_attention_and_claims(digits_data, tmp_path):
    data = digits_data(test=24)["test"]
    options = ("--num-rows", "20", "--num-cuts", "4", "--claims-per-cut", "20")
    records, summary = run("perception", data, tmp_path / "out", *options)
    assert len(records) == 20
    for record in records:
        assert len(record["attention"]) == record["num_tokens"]
        positions = [anchor["position"] for anchor in record["anchors"]]
        assert positions == sorted(positions)
        assert positions.count(0) == 20  # all claims at every cut
        assert positions[-1] <= record["reasoning"][1]
    claims = summary["claims"]
    assert claims["start"]["of"] == 400
    assert claims["all"]["low"] > 0.5  # it sees: its card says 0.7
    assert summary["prefix_cache"]["share"] > 0.3  # questions of 25 tokens behind some 20 to 80
