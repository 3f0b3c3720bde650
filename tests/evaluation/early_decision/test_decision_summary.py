"""What a table of forced answers says, by hand-computed numbers."""

import json

import pytest

from vapo_verl.evaluation.early_decision import (
    accuracy_by_cut,
    drop_from_peak,
    load_early_decision,
    peak,
    recoverable_any,
    recoverable_single,
    summarise,
)
from vapo_verl.evaluation.probing.journal import ROWS_FILE
from vapo_verl.run_folder import RunError

RIGHT = [  # rows by cuts at 0, 50 and 100 %
    (0, 1, 1),
    (0, 1, 0),
    (1, 1, 0),
    (1, 0, 0),
    (0, 0, 0),
]


def line(row, right, targets=(0.0, 0.5, 1.0)):
    cuts = [
        {"target": target, "position": 3, "answer": "1", "right": bool(flag)}
        for target, flag in zip(targets, right, strict=True)
    ]
    return {
        "row": row,
        "data_source": "digits",
        "index": None,
        "ground_truth": "1",
        "response": "<think>a.</think>\\boxed{1}",
        "num_tokens": 6 + row,
        "reasoning": [1, 3],
        "finish": "stop",
        "answer": "1",
        "right": bool(right[-1]),
        "cuts": cuts,
    }


def write(folder, lines):
    (folder / ROWS_FILE).write_text("".join(json.dumps(each) + "\n" for each in lines))


@pytest.fixture
def decision(tmp_path):
    write(tmp_path, [line(row, right) for row, right in enumerate(RIGHT)])
    return load_early_decision(tmp_path)


def test_rows_come_back_as_they_were_written(decision):
    assert decision.targets == (0.0, 0.5, 1.0)
    assert decision.right().tolist() == [list(map(bool, right)) for right in RIGHT]
    assert decision.rows[0].reasoning == (1, 3)
    assert decision.rows[4].num_tokens == 10


def test_accuracy_peak_and_drop(decision):
    assert [cut["share"]["num"] for cut in accuracy_by_cut(decision)] == [2, 3, 1]
    assert peak(decision)["target"] == 0.5
    drop = drop_from_peak(decision)
    assert (drop["difference"], drop["gained"], drop["lost"]) == (-2 / 5, 0, 2)
    assert drop["p"] == pytest.approx(0.5)  # 2 / 2^2


def test_recoverable_rows(decision):
    found = recoverable_any(decision)  # rows 1, 2 and 3 of the wrong 1, 2, 3 and 4
    assert (found["of_errors"]["num"], found["of_errors"]["of"]) == (3, 4)
    assert (found["of_rows"]["num"], found["of_rows"]["of"]) == (3, 5)
    best = recoverable_single(decision)  # two at 0 % and two at 50 %: the earlier counts
    assert (best["target"], best["of_errors"]["num"]) == (0.0, 2)


def test_summary_is_json(decision):
    summary = json.loads(json.dumps(summarise(decision), allow_nan=False))
    assert summary["num_rows"] == 5
    assert summary["response_accuracy"]["num"] == 1
    assert summary["mean_tokens"] == 8


def test_nothing_there_and_something_else_there(tmp_path):
    assert load_early_decision(tmp_path / "none") is None
    write(tmp_path, [{"row": 1, "answer": "1"}])
    with pytest.raises(RunError, match="early-decision"):
        load_early_decision(tmp_path)
    write(tmp_path, [line(0, (0, 1, 1)), line(1, (0, 1), targets=(0.0, 1.0))])
    with pytest.raises(RunError, match="differ in their cuts"):
        load_early_decision(tmp_path)


def test_a_response_without_an_answer_does_not_differ_from_the_forced_one(tmp_path):
    rows = [line(row, right) for row, right in enumerate(RIGHT)]
    rows[0] |= {"answer": None, "finish": "length"}
    write(tmp_path, rows)
    agrees = summarise(load_early_decision(tmp_path))["forced_agrees_with_response"]
    assert (agrees["num"], agrees["of"]) == (4, 4)
