"""Interventions on the packaged model, which knows neither, as every part of them works."""

import pytest

from tests.evaluation.probing_commands import run

FOCUS = " look at the image again."


@pytest.mark.slow
def test_responses_with_insertions(digits_data, tmp_path):
    data = digits_data(test=12)["test"]
    texts = ("--focus-text", FOCUS, "--replay-scale", "1")
    records, summary = run("interventions", data, tmp_path / "out", *texts)
    for record in records:
        plain, replay, focus = (record["responses"][n] for n in ("plain", "replay", "focus"))
        for each in (plain, replay, focus):
            assert len(each["attention"]) == each["num_tokens"]
        assert focus["response"].count(FOCUS) >= len(focus["insertions"]) >= 1
        assert FOCUS not in plain["response"] and "user" not in replay["response"]
        for treated in (replay, focus):
            first = treated["insertions"][0]
            assert treated["insertions"] == sorted(treated["insertions"])
            assert treated["attention"][:first] == plain["attention"][:first]
            assert len(treated["insertions"]) <= 4
    responses = summary["responses"]
    assert responses["replay"]["mean_insertions"] > 1
    # a second image of the same size takes a share of its own
    assert responses["replay"]["attention"]["mean"] != responses["plain"]["attention"]["mean"]
