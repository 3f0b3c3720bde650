"""Shares with their intervals, and the exact test of two answers to the same questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from scipy import stats

from vapo_verl.agreement import wilson_interval


class Share(TypedDict):
    """num / of, with Wilson's 95 % interval; share, low and high are null of nothing."""

    num: int
    of: int
    share: float | None
    low: float | None
    high: float | None


def share(num: int, of: int) -> Share:
    """A share as it stands in a summary."""
    if not of:
        return Share(num=0, of=0, share=None, low=None, high=None)
    low, high = wilson_interval(num, of)
    return Share(num=num, of=of, share=num / of, low=low, high=high)


def share_of(flags: Sequence[bool] | np.ndarray) -> Share:
    """Share of true ones."""
    return share(int(np.sum(flags)), len(flags))


class PairedShares(TypedDict):
    """Two right/wrong answers to each of n rows."""

    n: int
    difference: float | None
    """Share right in b minus that in a."""
    low: float | None
    """Wald's 95 % interval for paired shares; so is `high`."""
    high: float | None
    gained: int
    """Rows right in b only."""
    lost: int
    """Rows right in a only."""
    p: float
    """McNemar's exact test, two-sided: `gained` against a fair coin thrown gained + lost times."""


def paired_shares(a: np.ndarray, b: np.ndarray) -> PairedShares:
    """Compare bool [rows] with bool [rows] of the same rows."""
    n, gained, lost = len(a), int(np.sum(~a & b)), int(np.sum(a & ~b))
    p = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    if not n:
        return PairedShares(n=0, difference=None, low=None, high=None, gained=0, lost=0, p=p)
    difference = (gained - lost) / n
    half = 1.96 * math.sqrt(max(gained + lost - (gained - lost) ** 2 / n, 0.0)) / n
    return PairedShares(
        n=n,
        difference=difference,
        low=difference - half,
        high=difference + half,
        gained=gained,
        lost=lost,
        p=p,
    )


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same for JSON: null for what is nan or infinite."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
