"""Image swap of the packaged model."""

import pytest

from tests.evaluation.probing_commands import run


@pytest.mark.slow
def test_the_image_matters_at_the_start_and_not_behind_the_reasoning(digits_data, tmp_path):
    data = digits_data(test=96)["test"]
    options = ("--num-cuts", "5", "--claims-per-cut", "4", "--batch", "32")
    records, summary = run("image-swap", data, tmp_path / "out", *options)
    assert all(record["same_size"] for record in records)
    assert all(record["swapped_with"] != record["row"] for record in records)
    for record in records:
        for exchange in record["exchanges"].values():
            assert len(exchange["kl"]) == record["num_tokens"]
            assert len(exchange["claims"]) == len(record["claims"]) > 0

    for cuts in summary["exchanges"].values():
        start, end = cuts[0], cuts[-1]
        # the model's card: 0.1 to 0.12 with another image, which is what text alone can do
        assert start["accuracy"]["share"] < 0.25
        assert start["drop"]["difference"] < 0 and start["drop"]["p"] < 0.01
        assert start["agreement"]["share"] < 0.5
        # the answer stands in the reasoning by then
        assert end["agreement"]["share"] > 0.9
        assert start["kl"] > end["kl"]
        assert start["claims"]["own"]["share"] > start["claims"]["exchanged"]["share"] + 0.05
        assert abs(start["claims"]["exchanged"]["share"] - 0.5) < 0.1  # chance
