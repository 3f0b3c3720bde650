"""What a stage's cases leave behind."""

import pytest

from vapo_verl.gpu_check.case import CaseFailed, CaseSkipped, Check, read_cases, require
from vapo_verl.gpu_check.results import CaseResult


def raising(error):
    def body():
        raise error

    return body


@pytest.fixture
def check(tmp_path):
    return Check("cpu", tmp_path, seconds=60)


def test_cases_are_recorded_as_they_end(check, tmp_path):
    assert check.case("good", lambda: {"seconds": 1.5})
    assert not check.case("wrong", raising(CaseFailed("off by 1")))
    assert not check.case("absent", raising(CaseSkipped("no flashinfer")))
    assert not check.case("broken", raising(KeyError("x")))
    told = [(case.name, case.status, case.message) for case in read_cases(tmp_path)]
    assert told == [
        ("good", "passed", ""),
        ("wrong", "failed", "off by 1"),
        ("absent", "skipped", "no flashinfer"),
        ("broken", "failed", "KeyError: 'x'"),
    ]
    assert read_cases(tmp_path)[0].figures == {"seconds": 1.5}


def test_a_case_without_time_is_skipped_and_not_run(tmp_path):
    check = Check("cpu", tmp_path, seconds=20)
    assert not check.case("long", raising(AssertionError("it ran")), needs_s=30)
    (case,) = read_cases(tmp_path)
    assert (case.status, case.message) == ("skipped", "no time left")


def test_a_line_that_is_still_being_written_is_not_read(check, tmp_path):
    check.record(CaseResult(name="whole", status="passed", seconds=1.0))
    with (tmp_path / "cases.jsonl").open("a") as stream:
        stream.write('{"name": "ha')
    assert [case.name for case in read_cases(tmp_path)] == ["whole"]


def test_no_cases_without_a_file(tmp_path):
    assert read_cases(tmp_path) == []


def test_require_raises_with_its_message():
    require(True, "")
    with pytest.raises(CaseFailed, match=r"0\.5 is above"):
        require(False, "0.5 is above 0.1")
