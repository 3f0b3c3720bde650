import json

import pytest

from vapo_verl.data.__main__ import main
from vapo_verl.data.errors import FileError
from vapo_verl.data.grade import grade_file


def answered(row, truth, style="rule", **cells):
    return row(reward_model={"style": style, "ground_truth": truth}, **cells)


def test_counts_per_style_and_rows_to_look_at(row, write, tmp_path):
    truths = ["7", "12 cm", "A, C", "Ｂ", r"Perimeter $=18.8 \mathrm{~cm}$", "2023-01-02", "7"]
    styles = ["rule"] * 6 + ["exact"]
    rows = [answered(row, truth, style) for truth, style in zip(truths, styles, strict=True)]
    out = tmp_path / "graded.jsonl"
    report = grade_file(write(rows), out=out)
    assert report.rows == {"math": 6, "exact": 1}
    assert dict(report.kinds) == {
        ("math", "unit"): 2,
        ("math", "letters"): 1,
        ("math", "wide"): 1,
    }
    assert report.num_errors == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(7))
    assert lines[3] == {
        "row": 3,
        "style": "math",
        "truth": "Ｂ",
        "kinds": ["wide"],
        "answer": None,
        "correct": None,
    }


def test_truths_that_nothing_can_match_are_errors(row, write, capsys):
    path = write([answered(row, "7"), answered(row, "$"), answered(row, r"\frac{1}{2")])
    assert main(["grade", str(path)]) == 1
    output = capsys.readouterr().out
    assert "unusable: no ground truth that can be compared\n  row 1 (math)" in output
    assert "unmatched: not correct against itself: rewrite it, or drop the row\n  row 2" in output


def test_any_member_of_a_list_is_correct(row, write):
    rows = [answered(row, ["7", "seven"], prediction=text) for text in (r"\boxed{Seven}", "7")]
    report = grade_file(write(rows))
    assert report.kinds["math", "several"] == 2
    assert (report.correct["math"], report.unanswered["math"]) == (1, 1)


def test_rows_for_a_judge_are_counted_and_not_graded(row, write, capsys):
    rows = [
        answered(row, "a cat", "judge", prediction=r"\boxed{lynx}"),
        answered(row, r"\frac{1}{2", "judge", prediction="none"),  # not correct against itself
        answered(row, "7", prediction=r"\boxed{7}"),
    ]
    path = write(rows)
    assert main(["grade", str(path)]) == 0
    output = capsys.readouterr().out
    [judged] = [line.split() for line in output.splitlines() if line.split()[0] == "judge"]
    assert judged == ["judge", "2", *"0000000", "-", "-"]
    assert output.endswith("2 rows of style judge are not graded\n")
    assert grade_file(path).correct == {"math": 1, "judge": 0}


def test_predictions_of_a_plain_file(write, capsys):
    rows = [
        {"answer": "0.5", "mine": r"<think>\boxed{7}</think> \boxed{50\%}"},
        {"answer": "0.5", "mine": r"\boxed{5}"},
        {"answer": "0.5", "mine": None},
    ]
    path = write(rows)
    assert main(["grade", str(path), "--predictions", "mine", "--style", "math"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[1].split()[-3:] == ["correct", "no", "box"]
    assert table[2].split() == ["math", "3", *"0000000", "1", "1"]


def test_a_column_that_is_not_there_is_named(write):
    with pytest.raises(FileError, match="no column 'mine', has"):
        grade_file(write([{"answer": "1"}]), prediction_column="mine")
    with pytest.raises(FileError, match="reward_model"):
        grade_file(write([{"question": "1"}]))


def test_the_graded_file_is_not_replaced(write, capsys):
    path = write([{"answer": "1"}])
    before = path.read_bytes()
    assert main(["grade", str(path), "--out", str(path)]) == 1
    assert f"--out: {path} is the input" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_no_file_is_a_message(tmp_path, capsys):
    assert main(["grade", str(tmp_path / "no.parquet")]) == 1
    assert "does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["grade", "x.parquet", "--style", "fuzzy"])
    assert ended.value.code == 2
