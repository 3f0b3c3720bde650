"""Rates and their paired comparison, by hand-computed numbers."""

import numpy as np
import pytest

from vapo_verl.analysis.statistics import paired_rates, rate, rate_of


def test_rate_and_its_interval():
    half = rate_of([True, False, True, False])
    assert (half["num"], half["of"], half["share"]) == (2, 4, 0.5)
    assert half["low"] == pytest.approx(0.1500, abs=1e-4)  # Wilson: 0.5 -+ 0.35 for 2 of 4
    assert half["high"] == pytest.approx(0.8500, abs=1e-4)
    assert rate(0, 0)["share"] is None


def test_mcnemar_counts_only_rows_that_changed():
    a = np.array([1, 1, 1, 0, 0, 0, 0, 0], dtype=bool)
    b = np.array([1, 1, 0, 1, 1, 1, 1, 0], dtype=bool)
    found = paired_rates(a, b)
    assert (found["gained"], found["lost"], found["difference"]) == (4, 1, 3 / 8)
    assert found["p"] == pytest.approx(12 / 32)  # 2 * (C(5,4) + C(5,5)) / 2^5
    # 3 / 10 ± 1.96 / 10 * sqrt(5 + 1 - 9 / 10)
    assert (found["low"], found["high"]) == pytest.approx((-0.1426, 0.7426), abs=1e-4)


def test_equal_answers_are_no_difference():
    same = np.array([True, False])
    found = paired_rates(same, same)
    assert (found["difference"], found["p"]) == (0, 1)
    # two rows do not show that no row can differ: 1.96 / 4 * sqrt(1)
    assert (found["low"], found["high"]) == pytest.approx((-0.49, 0.49), abs=1e-3)
    assert paired_rates(same[:0], same[:0])["difference"] is None
