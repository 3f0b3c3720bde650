"""Two runs side by side: differences over what both have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import stats

Key = TypeVar("Key", int, str)
MIN_PAIRS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """Of one quantity in run B and run A, over n common steps or prompts."""

    quantity: str
    n: int
    mean_a: float
    mean_b: float
    difference: float
    """Mean of B - A."""
    low: float
    """95 % interval of the difference, by Student's t; nan for n < 2. So is `high`."""
    high: float
    p_t: float
    """Of the paired t-test, two-sided; nan for n < 2 or where all differences are equal."""
    p_wilcoxon: float
    """Of Wilcoxon's signed-rank test, two-sided; nan where every difference is 0."""


def paired_difference(
    quantity: str, a: Mapping[Key, float], b: Mapping[Key, float]
) -> PairedDifference:
    """Compare what `a` and `b` hold under the same keys; n = 0 gives nan all over.

    The tests take the pairs as independent. Steps of a run are not quite, which makes p too small.
    """
    common = sorted(set(a) & set(b))
    first = np.array([a[key] for key in common], dtype=float)
    second = np.array([b[key] for key in common], dtype=float)
    differences = second - first
    half, p_t = _t_test(differences)
    mean = _mean(differences)
    return PairedDifference(
        quantity=quantity,
        n=len(common),
        mean_a=_mean(first),
        mean_b=_mean(second),
        difference=mean,
        low=mean - half,
        high=mean + half,
        p_t=p_t,
        p_wilcoxon=_wilcoxon(differences),
    )


def _t_test(differences: np.ndarray) -> tuple[float, float]:
    n = len(differences)
    if n < MIN_PAIRS:
        return math.nan, math.nan
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    if error <= 1e-12 * max(abs(_mean(differences)), 1e-300):
        return half, math.nan
    return half, float(2 * stats.t.sf(abs(_mean(differences)) / error, n - 1))


def _wilcoxon(differences: np.ndarray) -> float:
    if len(differences) < MIN_PAIRS or not np.any(differences):
        return math.nan
    return float(stats.wilcoxon(differences).pvalue)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan
