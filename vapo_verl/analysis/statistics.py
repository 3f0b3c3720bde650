"""Rates with intervals, agreement beyond chance, paired tests, and scores of benchmarks.

Numpy and scipy only. Scores of benchmarks: questions about one image, figure or chain succeed and
fail together, so that intervals and tests draw such clusters, never single rows; arms that were
trained with several seeds are compared by seed.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

import numpy as np
from scipy import stats

Answer = TypeVar("Answer", bound=Hashable)
_Z_95 = 1.959963984540054
Key = TypeVar("Key", int, str)
MIN_PAIRS = 2
NUM_RESAMPLES = 4000
"""Resamples of a bootstrap, and random sign flips of a test."""
_MAX_EXACT = 11
"""Up to so many clusters every flip of signs is counted: at most 2048."""
_DRAWS_AT_ONCE = 4_000_000
"""Counts held at once, resamples times clusters."""
_ROUNDING = 1e-12


def wilson_interval(num_yes: int, num_all: int) -> tuple[float, float]:
    """95 % interval of a rate (Wilson 1927); (0, 1) for 0 of 0.

    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n). Unlike p ± 1.96 sqrt(p(1-p)/n) it stays
    within 0..1 and keeps a width at 100 %, which is a usual result of audits.
    """
    if num_all == 0:
        return 0.0, 1.0
    rate, z2 = num_yes / num_all, _Z_95**2 / num_all
    middle = (rate + z2 / 2) / (1 + z2)
    half = _Z_95 * math.sqrt(rate * (1 - rate) / num_all + z2 / (4 * num_all)) / (1 + z2)
    low = max(middle - half, 0.0) if num_yes else 0.0  # exactly, without rounding
    high = min(middle + half, 1.0) if num_yes < num_all else 1.0
    return low, high


def cohens_kappa(pairs: Iterable[tuple[Answer, Answer]]) -> float | None:
    """Agreement of two raters beyond chance: (p_o - p_e) / (1 - p_e) (Cohen 1960).

    p_o is the fraction of equal answers, p_e what the raters' own frequencies give by chance. None
    if undefined: no pairs, or both always gave the same one answer.
    """
    return kappa_of_counts(Counter(pairs))


def kappa_of_counts(counts: Mapping[tuple[Answer, Answer], int]) -> float | None:
    """Cohen's kappa from the count of each pair of answers."""
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
    """Difference of one quantity between run B and run A, over n common steps or prompts."""

    quantity: str
    n: int
    mean_a: float
    mean_b: float
    difference: float
    """Mean of B - A."""
    low: float
    """95 % interval of the difference, by Student's t; nan where `p_t` is. So is `high`."""
    high: float
    p_t: float
    """Two-sided p of the paired t-test; nan for n < 2, and where all differences are equal, which
    does not show how they vary."""
    p_wilcoxon: float
    """Two-sided p of Wilcoxon's signed-rank test; nan where every difference is 0."""


def paired_difference(
    quantity: str, a: Mapping[Key, float], b: Mapping[Key, float]
) -> PairedDifference:
    """Compare the values of `a` and `b` under the same keys; n = 0 gives nan everywhere.

    The tests assume independent pairs. Steps of a run are not quite independent: p is too small.
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
    if error <= _ROUNDING * max(abs(_mean(differences)), 1e-300):
        return math.nan, math.nan
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return half, float(2 * stats.t.sf(abs(_mean(differences)) / error, n - 1))


def _wilcoxon(differences: np.ndarray) -> float:
    if len(differences) < MIN_PAIRS or not np.any(differences):
        return math.nan
    return float(stats.wilcoxon(differences).pvalue)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


class Rate(TypedDict):
    """num / of, with Wilson's 95 % interval; share, the value, low and high are null for 0 of 0."""

    num: int
    of: int
    share: float | None
    low: float | None
    high: float | None


def rate(num: int, of: int) -> Rate:
    """A rate as a summary holds it; the key of its value is `share`."""
    if not of:
        return Rate(num=0, of=0, share=None, low=None, high=None)
    low, high = wilson_interval(num, of)
    return Rate(num=num, of=of, share=num / of, low=low, high=high)


def rate_of(flags: Sequence[bool] | np.ndarray) -> Rate:
    """Rate of true flags."""
    return rate(int(np.sum(flags)), len(flags))


class PairedRates(TypedDict):
    """Two answers to each of n rows, correct or incorrect."""

    n: int
    difference: float | None
    """Rate of correct answers in b minus that in a."""
    low: float | None
    """95 % interval for paired rates (Agresti and Min 2005); so is `high`."""
    high: float | None
    gained: int
    """Rows correct in b only."""
    lost: int
    """Rows correct in a only."""
    p: float
    """McNemar's exact test, two-sided: `gained` against a fair coin thrown gained + lost times."""


def paired_rates(a: np.ndarray, b: np.ndarray) -> PairedRates:
    """Compare bool [rows] with bool [rows] of the same rows.

    The interval is Wald's after half a row is added to each of the four outcomes (both correct, b
    only, a only, none): it keeps a width where no row differs.
    """
    n, gained, lost = len(a), int(np.sum(~a & b)), int(np.sum(a & ~b))
    p = mcnemar(gained, lost)
    if not n:
        return PairedRates(n=0, difference=None, low=None, high=None, gained=0, lost=0, p=p)
    middle = (gained - lost) / (n + 2)
    half = _Z_95 * math.sqrt(gained + lost + 1 - (gained - lost) * middle) / (n + 2)
    return PairedRates(
        n=n,
        difference=(gained - lost) / n,
        low=max(middle - half, -1.0),
        high=min(middle + half, 1.0),
        gained=gained,
        lost=lost,
        p=p,
    )


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values for JSON: None instead of nan and infinity."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with its 95 % interval; nan where nothing is known."""

    mean: float
    low: float
    high: float


def pass_at_k(num_correct: int, num_samples: int, k: int) -> float:
    """Unbiased chance that at least one of `k` samples is correct (Chen et al. 2021, Eq. 1).

    1 - C(n - c, k) / C(n, k): of all ways to draw k of the n samples, those that hold one of the c
    correct ones.

    Raises:
        ValueError: not 1 <= k <= n, or not 0 <= c <= n.
    """
    if not (1 <= k <= num_samples and 0 <= num_correct <= num_samples):
        raise ValueError(
            f"pass@{k} of {num_correct} correct in {num_samples} samples: give 1 <= k <= samples "
            "and 0 <= correct <= samples"
        )
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def majority_score(answers: Sequence[Hashable | None], correct: Sequence[bool]) -> float:
    """maj@k of the k samples of a row: whether the most frequent answer is correct.

    A tie counts the fraction of its answers that are correct, the expectation of a fair draw. An
    unparsed answer (None) is no vote; without any vote the score is 0. Answers vote by their text:
    two writings of one value are two answers.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    first = {answer for answer, count in votes.items() if count == most}
    is_correct = dict[Hashable | None, bool](zip(answers, correct, strict=True))
    return sum(is_correct[answer] for answer in first) / len(first)


def clustered_interval(
    values: Sequence[float], clusters: Sequence[Hashable], *, seed: int = 0
) -> Interval:
    """Mean over rows, and its 95 % interval by a bootstrap that draws clusters.

    Each resample draws as many clusters as there are, m, with replacement, and takes the mean over
    the rows of those drawn (a ratio: clusters differ in size). The interval is the expanded
    percentile one (Hesterberg 2015), which lets few clusters count as few: its tails hold
    Phi(-sqrt(m / (m - 1)) t) with Student's t of m - 1 degrees of freedom. One cluster, or clusters
    that are all equal, do not show how they vary: the interval is nan.

    Args:
        values: score of each row [rows].
        clusters: name of each row's cluster [rows].
        seed: of the draws; the same input gives the same interval.
    """
    rows = np.asarray(values, dtype=float)
    if not len(rows):
        return Interval(mean=math.nan, low=math.nan, high=math.nan)
    sums, sizes = _by_cluster(rows, clusters)
    low = high = math.nan
    if len(sums) > 1:
        means = _resampled_means(sums, sizes, seed)
        if np.ptp(means) > _ROUNDING:
            m = len(sums)
            tail = stats.norm.cdf(math.sqrt(m / (m - 1)) * stats.t.ppf(0.025, m - 1))
            low, high = np.quantile(means, (tail, 1 - tail))
    return Interval(mean=float(rows.mean()), low=float(low), high=float(high))


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedScores:
    """Model B against model A on the same rows."""

    num_rows: int
    num_clusters: int
    mean_a: float
    mean_b: float
    difference: Interval
    """B - A."""
    p: float
    """Two-sided, of no difference; nan if unknown."""
    test: str
    """`mcnemar` or `sign_flips`."""


def compare_paired(
    a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable]
) -> PairedScores:
    """Compare the scores that two models have on the same rows.

    Where every score is 0 or 1 and every row is its own cluster, the test is McNemar's exact one (a
    binomial test of the rows that only one model solves), and the interval that of
    :func:`paired_rates`. Otherwise the interval is that of :func:`clustered_interval` on the
    differences, and the test flips the signs of the clusters' summed differences: p is the fraction
    of flips whose sum is as far from 0. All flips of few clusters are counted, so that p is at
    least 2 / 2^m with m clusters; of many, 4000 random ones, which are the same at each call.

    Args:
        a: [rows].
        b: [rows], in the same order.
        clusters: [rows].
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    differences = second - first
    num_clusters = len(set(clusters))
    binary = bool(np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all())
    if binary and num_clusters == len(differences) > 0:
        rates = paired_rates(first == 1.0, second == 1.0)
        assert rates["low"] is not None and rates["high"] is not None  # there are rows
        test, p = "mcnemar", rates["p"]
        interval = Interval(mean=float(differences.mean()), low=rates["low"], high=rates["high"])
    else:
        test, p = "sign_flips", _flip_p(_by_cluster(differences, clusters)[0])
        interval = clustered_interval(differences.tolist(), clusters)
    return PairedScores(
        num_rows=len(differences),
        num_clusters=num_clusters,
        mean_a=float(first.mean()) if len(first) else math.nan,
        mean_b=float(second.mean()) if len(second) else math.nan,
        difference=interval,
        p=p,
        test=test,
    )


def mcnemar(num_gained: int, num_lost: int) -> float:
    """McNemar's exact test, two-sided: the gained rows against a fair coin; 1 without any."""
    total = num_gained + num_lost
    return float(stats.binomtest(num_gained, total).pvalue) if total else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmScore:
    """An arm of several training seeds: each seed is one number."""

    num_seeds: int
    mean: float
    lowest: float
    highest: float


def arm_score(by_seed: Sequence[float]) -> ArmScore:
    """Mean and range over the seeds of one arm, which has at least one."""
    return ArmScore(
        num_seeds=len(by_seed),
        mean=float(np.mean(by_seed)),
        lowest=float(min(by_seed)),
        highest=float(max(by_seed)),
    )


def compare_arms(a: Sequence[float], b: Sequence[float]) -> tuple[Interval, float]:
    """Difference B - A of two arms and p, by Welch's t-test on one score per seed.

    However many rows a benchmark has, the evidence is limited by the seeds. With one seed in an arm
    the interval and p are nan: the spread between seeds is unknown. Equal scores within both arms
    give nan, too.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    difference = float(second.mean() - first.mean())
    unknown = Interval(mean=difference, low=math.nan, high=math.nan)
    if min(len(first), len(second)) < 2:
        return unknown, math.nan
    parts = [float(arm.var(ddof=1)) / len(arm) for arm in (first, second)]
    error = math.sqrt(sum(parts))
    if error <= 1e-12:
        return unknown, math.nan
    freedom = error**4 / sum(
        part**2 / (len(arm) - 1) for part, arm in zip(parts, (first, second), strict=True)
    )
    half = float(stats.t.ppf(0.975, freedom)) * error
    p = float(2 * stats.t.sf(abs(difference) / error, freedom))
    return Interval(mean=difference, low=difference - half, high=difference + half), p


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: rejecting those <= q keeps the false discovery rate at q (1995).

    nan stands for a test that was not possible: it stays nan and is not counted.
    """
    values = np.asarray(p_values, dtype=float)
    known = ~np.isnan(values)
    if known.any():
        values[known] = stats.false_discovery_control(values[known], method="bh")
    return values.tolist()


def _by_cluster(values: np.ndarray, clusters: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of each cluster's values, and its number of rows, [clusters] each."""
    numbers: dict[Hashable, int] = {}
    places = [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]
    assert len(places) == len(values), "a cluster for each row"
    where = np.array(places, dtype=int)
    return np.bincount(where, weights=values), np.bincount(where)


def _resampled_means(sums: np.ndarray, sizes: np.ndarray, seed: int) -> np.ndarray:
    """Mean over the rows of as many clusters as there are, drawn with replacement [resamples]."""
    rng = np.random.default_rng(seed)
    evenly = np.full(len(sums), 1 / len(sums))
    means = []
    for num in _at_once(len(sums)):
        drawn = rng.multinomial(len(sums), evenly, size=num)
        means.append((drawn @ sums) / (drawn @ sizes))
    return np.concatenate(means)


def _flip_p(sums: np.ndarray) -> float:
    """Two-sided p of no difference, by flips of the clusters' signs; nan with less than two, and
    for a score that is nan."""
    m, observed = len(sums), abs(float(sums.sum())) - _ROUNDING
    if m < 2 or not math.isfinite(observed):
        return math.nan
    if m <= _MAX_EXACT:
        every = (np.arange(2**m)[:, None] >> np.arange(m)) & 1
        return float(np.mean(np.abs((1 - 2 * every) @ sums) >= observed))
    rng = np.random.default_rng(0)  # the same input gives the same p
    as_far = sum(
        int((np.abs(rng.choice((-1, 1), size=(num, m)) @ sums) >= observed).sum())
        for num in _at_once(m)
    )
    return (as_far + 1) / (NUM_RESAMPLES + 1)


def _at_once(num_clusters: int) -> Iterator[int]:
    """Parts of the resamples whose draws fit in memory."""
    step = max(_DRAWS_AT_ONCE // num_clusters, 1)
    for start in range(0, NUM_RESAMPLES, step):
        yield min(step, NUM_RESAMPLES - start)
