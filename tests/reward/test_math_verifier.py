import time

import psutil
import pytest

from vapo_verl.reward.math_verifier import MAX_CHARS, MathVerifier

ENDLESS = "9^{9^{9^9}}"  # sympy takes the power; no signal interrupts it


@pytest.fixture(scope="module")
def verifier():
    verifier = MathVerifier(answer_limit_s=1.0)
    yield verifier
    verifier.close()


def test_an_endless_comparison_is_stopped_and_the_next_one_works(verifier):
    assert verifier.equal(r"\frac{1}{2}", "0.5")
    start = time.monotonic()
    assert not verifier.equal(ENDLESS, "3")
    assert time.monotonic() - start < 10
    verifier.answer_limit_s = 60.0
    assert verifier.equal(r"\frac{1}{2}", "0.5")


def is_worker(process):
    return "vapo_verl.reward.math_worker" in process.cmdline()


def test_a_child_that_died_between_questions_is_replaced(verifier):
    verifier.answer_limit_s = 60.0
    assert verifier.equal("0.25", r"\frac{1}{4}")
    children = [c for c in psutil.Process().children() if is_worker(c)]
    assert children
    for child in children:
        child.kill()
        child.wait()
    assert verifier.equal("0.25", r"\frac{1}{4}")


def test_very_long_expressions_are_not_asked(verifier):
    long = "1+" * MAX_CHARS + "1"
    assert not verifier.equal(long, long)
