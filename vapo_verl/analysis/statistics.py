"""Rates with intervals, agreement beyond chance, and paired tests (numpy and scipy only)."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

import numpy as np
from scipy import stats

Answer = TypeVar("Answer", bound=Hashable)
_Z_95 = 1.959963984540054
Key = TypeVar("Key", int, str)
MIN_PAIRS = 2


def wilson_interval(num_yes: int, num_all: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) for none of none.

    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n). Unlike p ± 1.96 sqrt(p(1-p)/n) it stays
    within 0..1 and does not shrink to nothing at 100 %, where audits end up.
    """
    if num_all == 0:
        return 0.0, 1.0
    share, z2 = num_yes / num_all, _Z_95**2 / num_all
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z_95 * math.sqrt(share * (1 - share) / num_all + z2 / (4 * num_all)) / (1 + z2)
    low = max(middle - half, 0.0) if num_yes else 0.0  # exactly, without rounding
    high = min(middle + half, 1.0) if num_yes < num_all else 1.0
    return low, high


def cohens_kappa(pairs: Iterable[tuple[Answer, Answer]]) -> float | None:
    """Agreement of two raters beyond chance: (p_o - p_e) / (1 - p_e) (Cohen 1960).

    p_o is the share of equal answers, p_e what the raters' own frequencies give by chance. None
    where it means nothing: no pairs, or both gave the same one answer throughout.
    """
    return kappa_of_counts(Counter(pairs))


def kappa_of_counts(counts: Mapping[tuple[Answer, Answer], int]) -> float | None:
    """The same from how often each pair of answers was given."""
    total = sum(counts.values())
    if not total:
        return None
    first: Counter[Answer] = Counter()
    second: Counter[Answer] = Counter()
    for (a, b), count in counts.items():
        first[a] += count
        second[b] += count
    observed = sum(count for (a, b), count in counts.items() if a == b) / total
    by_chance = sum(count * second[answer] for answer, count in first.items()) / total**2
    return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)


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
