"""Stored predictions, graded from the command line."""

import json
import subprocess
import sys

import pytest

from tests.evaluation.benchmarks.benchmark_tables import write_tsv
from vapo_verl.evaluation.__main__ import main

ROWS = [
    {"index": 4, "answer": "B", "prediction": r"<think>x</think>\boxed{B}"},
    {"index": 7, "answer": "A", "prediction": r"\boxed{\text{two}}"},
    {"index": 9, "answer": "A", "prediction": "I cannot see it.\nSorry."},
    {"index": 2, "answer": "B", "prediction": "The answer is (B)."},
]
OPTIONS = {"question": "Which?", "A": "one", "B": "two", "category": "count"}


def score(tmp_path, rules: str, rows: list[dict]) -> list[dict]:
    path = write_tsv(tmp_path / "p.tsv", rows)
    out = tmp_path / "new" / "grades.jsonl"
    assert main(["score", str(path), "--rules", rules, "--out", str(out)]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_line_for_each_row_and_the_scores(tmp_path, capsys):
    grades = score(tmp_path, "mcq", [row | OPTIONS for row in ROWS])
    assert grades == [
        {"index": 4, "correct": True, "extracted": "B", "rule": "mcq"},
        {"index": 7, "correct": False, "extracted": "B", "rule": "mcq"},
        {"index": 9, "correct": None, "extracted": None, "rule": "mcq"},
        {"index": 2, "correct": True, "extracted": "B", "rule": "mcq"},
    ]
    assert capsys.readouterr().out.splitlines()[:3] == [
        "mcq: accuracy 0.5000 (0.1500 to 0.8500), 2 of 4 rows",
        "unparsed, counted incorrect: 0.2500, 1 of 4 rows",
        "category: count: 0.5000",
    ]


def test_a_lone_surrogate_is_written_as_json_escapes_it(tmp_path):
    path, out = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    row = {"index": 1, "question": "?", "answer": "x", "prediction": "\\boxed{\ud800}"}
    path.write_text(json.dumps(row))
    assert main(["score", str(path), "--rules", "free-form", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["extracted"] == "\ud800"


def test_scores_of_the_benchmark_are_printed(tmp_path, capsys):
    row = {"question": "Is it?", "answer": "Yes", "prediction": "yes", "l2-category": "map"}
    places = ("0_0_0", "0_0_1", "0_1_0")
    score(tmp_path, "hallusionbench", [row | {"index": f"VD_map_1_{p}"} for p in places])
    assert "fAcc: 1.0000" in capsys.readouterr().out


def test_a_judge_only_benchmark_says_so_and_has_no_accuracy(tmp_path, capsys):
    rows = [{"index": 1, "question": "?", "answer": "a<AND>b", "prediction": "a and b"}]
    assert score(tmp_path, "mmvet", rows)[0]["correct"] is None
    printed = capsys.readouterr().out
    assert "mmvet: 1 rows need a judge" in printed
    assert "accuracy" not in printed


@pytest.mark.parametrize(
    "rules, change, message",
    [
        ("wemath", {}, "missing columns ['key']"),
        ("mcq", {"answer": "E"}, "row 0, column 'answer': 'E' (str) is no option of index 4"),
        ("yes-no", {}, "row 0, column 'answer': 'B' (str) of index 4 is neither yes nor no"),
        ("mathverse", {"answer": " "}, "row 0, column 'answer'"),
        ("mcq", {"index": 7}, "row 1, column 'index': 7 is the index of row 0 too"),
    ],
)
def test_bad_rows_leave_no_output(tmp_path, capsys, rules, change, message):
    rows = [row | OPTIONS for row in ROWS]
    path = write_tsv(tmp_path / "p.tsv", [rows[0] | change, *rows[1:]])
    out = tmp_path / "grades.jsonl"
    assert main(["score", str(path), "--rules", rules, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_predictions_are_not_replaced_by_their_grades(tmp_path, capsys):
    path = write_tsv(tmp_path / "p.tsv", [row | OPTIONS for row in ROWS])
    before = path.read_bytes()
    assert main(["score", str(path), "--rules", "mcq", "--out", str(path)]) == 2
    assert f"--out: {path} is the input" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_no_such_file_or_rule(tmp_path, capsys):
    arguments = ["score", str(tmp_path / "none.tsv"), "--out", str(tmp_path / "o.jsonl"), "--rules"]
    assert main([*arguments, "mcq"]) == 2
    assert "none.tsv does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "mmbench"])
    assert "choose from" in capsys.readouterr().err


def test_help_is_light():
    """Neither torch nor an engine nor pyarrow is loaded to show it."""
    code = (
        "import sys\nfrom vapo_verl.evaluation.__main__ import main\n"
        "try:\n    main(['score', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'vllm', 'verl', 'pyarrow', 'pandas') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--rules NAME" in shown.stdout
    assert shown.stdout.splitlines()[-1] == "[]"
