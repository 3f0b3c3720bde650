"""Interventions against plain responses, by hand-computed numbers."""

import json

import pytest

from vapo_verl.evaluation.interventions.intervention_command import summarise


def response(right, num_tokens, insertions=()):
    return {
        "right": right,
        "num_tokens": num_tokens,
        "insertions": list(insertions),
        "finish": "stop",
        "attention": [0.2] * num_tokens,
    }


def test_paired_accuracy_and_length():
    rows = [
        (response(False, 10), response(True, 14, [2, 4]), response(False, 10, [2])),
        (response(True, 20), response(True, 22, [2]), response(False, 24)),
    ]
    records = [
        {"row": row, "responses": dict(zip(("plain", "replay", "focus"), each, strict=True))}
        for row, each in enumerate(rows)
    ]
    summary = json.loads(json.dumps(summarise(records), allow_nan=False))
    assert summary["responses"]["plain"]["accuracy"]["share"] == 0.5
    assert summary["responses"]["replay"]["mean_insertions"] == 1.5
    assert summary["responses"]["focus"]["attention"]["mean"] == pytest.approx(0.2)
    replay, focus = (summary["against_plain"][name] for name in ("replay", "focus"))
    assert (replay["accuracy"]["difference"], focus["accuracy"]["difference"]) == (0.5, -0.5)
    assert replay["accuracy"]["p"] == 1
    assert replay["num_tokens"]["difference"] == 3
