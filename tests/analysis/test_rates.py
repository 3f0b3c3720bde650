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
    # 1.96 / 8 * sqrt(5 - 9 / 8)
    assert found["high"] - found["difference"] == pytest.approx(0.4823, abs=1e-4)


def test_equal_answers_are_no_difference():
    same = np.array([True, False])
    found = paired_rates(same, same)
    assert (found["difference"], found["low"], found["high"], found["p"]) == (0, 0, 0, 1)
    assert paired_rates(same[:0], same[:0])["difference"] is None
