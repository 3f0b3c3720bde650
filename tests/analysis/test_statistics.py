import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vapo_verl.analysis.statistics import cohens_kappa, wilson_interval


def test_wilson_interval_by_hand():
    # p = 0.5, n = 4, z² = 3.8415, z²/n = 0.96036: middle 0.5,
    # half 1.96 sqrt(0.25 / 4 + 0.96036 / 16) / 1.96036 = 1.96 * 0.35 / 1.96036 = 0.35
    assert wilson_interval(2, 4) == pytest.approx((0.15, 0.85), abs=1e-3)


def test_wilson_interval_of_all_right_does_not_collapse():
    low, high = wilson_interval(50, 50)
    # p = 1: low = 1 / (1 + z²/n) = 1 / (1 + 3.8415 / 50)
    assert low == pytest.approx(1 / (1 + 3.8414588 / 50))
    assert high == 1


def test_no_answers_tell_nothing():
    assert wilson_interval(0, 0) == (0, 1)
    assert cohens_kappa([]) is None


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_within_0_and_1(counts):
    num_yes, num_all = counts
    low, high = wilson_interval(num_yes, num_all)
    assert 0 <= low <= num_yes / num_all + 1e-12
    assert num_yes / num_all - 1e-12 <= high <= 1
    mirrored = wilson_interval(num_all - num_yes, num_all)
    assert mirrored == pytest.approx((1 - high, 1 - low))


def test_kappa_by_hand():
    # Both yes 20, first only 5, second only 10, both no 15: p_o = 35/50 = 0.7,
    # p_e = (25 * 30 + 25 * 20) / 50² = 0.5, kappa = 0.2 / 0.5
    pairs = [("yes", "yes")] * 20 + [("yes", "no")] * 5 + [("no", "yes")] * 10 + [("no", "no")] * 15
    assert cohens_kappa(pairs) == pytest.approx(0.4)


def test_kappa_is_one_for_equal_and_zero_for_unrelated_answers():
    assert cohens_kappa([("yes", "yes"), ("no", "no"), ("unsure", "unsure")]) == 1
    unrelated = [(a, b) for a in ("yes", "no") for b in ("yes", "no")]
    assert math.isclose(cohens_kappa(unrelated), 0, abs_tol=1e-12)


def test_kappa_of_one_answer_throughout_is_undefined():
    assert cohens_kappa([("yes", "yes")] * 9) is None
    # 90 % the same, and yet no more than chance: one of the two never said anything but yes
    assert cohens_kappa([("yes", "yes")] * 9 + [("yes", "no")]) == pytest.approx(0)
