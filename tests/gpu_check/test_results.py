"""Verdicts, and the two files that tell them."""

import json

import pytest

from vapo_verl.gpu_check.results import (
    CaseResult,
    CheckResult,
    StageResult,
    markdown,
    significant,
    stage_status,
    write_results,
)

PASSED = CaseResult(name="a|b", status="passed", seconds=1.0, figures={"ms": 2.5, "layers": 4})
FAILED = CaseResult(name="c", status="failed", seconds=1.0, message="off\nby 1")
SKIPPED = CaseResult(name="d", status="skipped", seconds=0.0, message="no time left")


def check(*stages, **changes):
    facts = {
        "command": "python -m vapo_verl.gpu_check",
        "date": "2026-01-01 00:00 UTC",
        "machine": {"gpu": "H100", "vllm": None},
        "stages": stages,
        "seconds": 12.0,
    }
    return CheckResult(**{**facts, **changes})


def stage(status, *cases, **changes):
    return StageResult(name="kernels", status=status, seconds=3.0, cases=cases, **changes)


@pytest.mark.parametrize(
    ("cases", "problem", "status"),
    [
        ([PASSED], "", "passed"),
        ([PASSED, SKIPPED], "", "passed"),
        ([PASSED, FAILED], "", "failed"),
        ([PASSED], "exit code 1", "failed"),
        ([SKIPPED], "", "skipped"),
        ([], "", "skipped"),
    ],
)
def test_status_of_a_stage(cases, problem, status):
    assert stage_status(cases, problem) == status


def test_a_check_passes_only_where_something_ran_and_all_of_it_passed():
    passed, failed, skipped = (stage(status) for status in ("passed", "failed", "skipped"))
    assert check(passed, skipped).passed
    assert not check(passed, failed).passed
    assert not check(skipped).passed
    assert not check().passed
    assert not check(passed, stopped="SIGTERM").passed


def test_both_files_tell_the_same(tmp_path):
    result = check(
        stage("failed", PASSED, FAILED, SKIPPED, message="its process ended; last lines: boom")
    )
    write_results(result, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.md"]
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["passed"] is False
    assert document["stages"][0]["cases"][0]["figures"] == {"ms": 2.5, "layers": 4}
    text = (tmp_path / "results.md").read_text()
    assert "1 passed, 1 failed, 1 skipped" in text
    assert "gpu H100." in text
    assert r"| kernels | a\|b | passed | ms 2.5, layers 4 |" in text
    assert "| kernels | c | failed: off by 1 |  |" in text
    assert "last lines: boom" in text


def test_every_row_of_a_table_is_one_line():
    rows = [line for line in markdown(check(stage("failed", FAILED))).split("\n") if "|" in line]
    assert all(row.startswith("|") and row.endswith("|") for row in rows)


@pytest.mark.parametrize(
    ("value", "digits", "expected"), [(0.0123456, 2, 0.012), (1234.5, 3, 1230), (0.0, 2, 0.0)]
)
def test_significant_digits(value, digits, expected):
    assert significant(value, digits) == expected
