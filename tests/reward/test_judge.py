import time

import pytest

from vapo_verl.reward.judge import MAX_CHARS, Judge

ENDLESS = "9^{9^{9^9}}"  # sympy takes the power; no signal interrupts it


@pytest.fixture(scope="module")
def judge():
    judge = Judge(answer_limit_s=1.0)
    yield judge
    judge.close()


def test_an_endless_comparison_is_stopped_and_the_next_one_works(judge):
    assert judge.equal(r"\frac{1}{2}", "0.5")
    start = time.monotonic()
    assert not judge.equal(ENDLESS, "3")
    assert time.monotonic() - start < 10
    judge.answer_limit_s = 60.0
    assert judge.equal(r"\frac{1}{2}", "0.5")


def test_a_child_that_died_between_questions_is_replaced(judge):
    judge.answer_limit_s = 60.0
    assert judge.equal("0.25", r"\frac{1}{4}")
    judge._child.kill()
    judge._child.wait()
    assert judge.equal("0.25", r"\frac{1}{4}")


def test_very_long_expressions_are_not_asked(judge):
    long = "1+" * MAX_CHARS + "1"
    assert not judge.equal(long, long)
