"""What exchanged images change, by hand-computed numbers."""

import json

import pytest

from vapo_verl.evaluation.image_swap import EXCHANGES
from vapo_verl.evaluation.image_swap.swap_command import summarise


def exchanged(answers, truth, kl, claim_answers):
    cuts = [
        {"target": target, "position": position, "answer": answer, "right": answer == truth}
        for target, position, answer in zip((0.0, 1.0), (0, 3), answers, strict=True)
    ]
    return {
        "cuts": cuts,
        "claims": claims(claim_answers),
        "kl": kl,
        "logprob_drop": [2 * value for value in kl],
    }


def claims(answers):
    return [
        {"position": position, "label": True, "answer": answer, "correct": answer}
        for position, answer in zip((0, 3), answers, strict=True)
    ]


def record(answer, truth, answers, kl, own, other):
    return {
        "answer": answer,
        "right": answer == truth,
        "finish": "stop",
        "same_size": True,
        "num_tokens": 4,
        "attention": [0.4, 0.2, None, 0.1],
        "claims": claims(own),
        "exchanges": {name: exchanged(answers, truth, kl, other) for name in EXCHANGES},
    }


def test_summary_by_cut():
    records = [
        record("1", "1", ["2", "1"], [1.0, 0.0, 0.0, 0.0], (True, True), (False, True)),
        record("3", "1", ["1", "3"], [2.0, 0.0, 0.0, 1.0], (True, False), (True, False)),
    ]
    summary = json.loads(json.dumps(summarise(records), allow_nan=False))
    start, end = summary["exchanges"]["swap"]
    assert start["agreement"]["share"] == 0 and end["agreement"]["share"] == 1
    assert (start["accuracy"]["num"], end["accuracy"]["num"]) == (1, 1)
    assert (start["drop"]["gained"], start["drop"]["lost"]) == (1, 1)
    assert start["kl"] == pytest.approx((1 / 4 + 3 / 4) / 2)
    assert end["kl"] == pytest.approx((0 + 1) / 2)
    assert end["logprob_drop"] == pytest.approx(1.0)
    assert start["attention"] == pytest.approx((0.4 + 0.2 + 0.1) / 3)
    assert (start["claims"]["own"]["num"], start["claims"]["exchanged"]["num"]) == (2, 1)
    assert start["claims"]["agreement"]["share"] == 0.5
    assert end["claims"]["agreement"]["share"] == 1
    assert summary["accuracy"]["share"] == 0.5


def test_responses_without_an_answer_have_no_same_answer():
    unfinished = record(None, "1", [None, None], [0.0] * 4, (True, True), (True, True))
    answered = record("1", "1", ["1", None], [0.0] * 4, (True, True), (True, True))
    start, end = summarise([unfinished, answered])["exchanges"]["swap"]
    assert (start["agreement"]["num"], start["agreement"]["of"]) == (1, 1)
    assert (end["agreement"]["num"], end["agreement"]["of"]) == (0, 1)
    assert summarise([unfinished])["exchanges"]["swap"][0]["agreement"]["share"] is None
