"""Claim accuracy by place, by hand-computed numbers."""

import json

import numpy as np
import pytest

from vapo_verl.data.claims_column import Claim
from vapo_verl.evaluation.perception.perception_command import PARTS, part_of, summarise
from vapo_verl.evaluation.probing.respond import cycle_claims


def record(row, *anchors, attention=(0.4, 0.2)):
    return {
        "row": row,
        "right": row == 0,
        "format": 1.0,
        "finish": "stop",
        "num_tokens": 12,
        "attention": list(attention),
        "anchors": [
            {"position": position, "label": True, "answer": correct, "correct": correct}
            for position, correct in anchors
        ],
        "probe_tokens": 40,
        "cached_tokens": 30,
    }


def test_parts_of_a_response():
    parts = [part_of(position, 12) for position in (0, 1, 4, 5, 7, 8, 12)]
    assert parts == ["start", "early", "early", "middle", "middle", "late", "late"]


def test_accuracy_by_part_and_its_paired_difference():
    records = [
        record(0, (0, True), (2, True), (3, False), (6, True), (12, False)),
        record(1, (0, True), (2, True), (8, True), (9, False)),
        record(2, (0, False), (4, True)),  # has no late claim: in no pair
    ]
    summary = json.loads(json.dumps(summarise(records), allow_nan=False))
    claims = summary["claims"]
    counts = {part: (claims[part]["num"], claims[part]["of"]) for part in ("all", *PARTS)}
    assert counts == {
        "all": (7, 11),
        "start": (2, 3),
        "early": (3, 4),
        "middle": (1, 1),
        "late": (1, 3),
    }
    pairs = claims["late_minus_early"]
    assert pairs["n"] == 2
    assert pairs["difference"] == pytest.approx(((0 - 1 / 2) + (1 / 2 - 1)) / 2)
    assert [each["share"]["of"] for each in claims["by_progress"]] == [
        *(0, 2, 1, 1, 0, 1, 1, 1, 0, 1)  # tenths of 2, 2, 3, 4, 6, 8, 9 and 12 of 12 tokens
    ]
    assert summary["prefix_cache"]["share"] == 0.75
    assert summary["attention"]["mean"] == pytest.approx(0.3)
    assert summary["attention"]["late_over_early"] is None  # no token in the first third


def test_rows_without_claims_have_attention_alone():
    summary = summarise([record(0)])
    assert summary["claims"]["all"]["share"] is None
    assert summary["claims"]["late_minus_early"]["difference"] is None


def test_claims_go_round():
    claims = [Claim(str(i), True) for i in range(5)]
    asked = cycle_claims([0, 4, 9], claims, 2, np.random.default_rng(0))
    assert [each.position for each in asked] == [0, 0, 4, 4, 9, 9]
    texts = [each.claim.text for each in asked]
    assert sorted(texts[:5]) == list("01234")  # all, before the first comes again
    assert texts[5] == texts[0]
    everywhere = cycle_claims([0, 4], claims, 20, np.random.default_rng(0))
    assert len(everywhere) == 10
    assert cycle_claims([0], [], 2, np.random.default_rng(0)) == []
