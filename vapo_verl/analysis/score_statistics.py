"""Scores of benchmarks: several samples per row, intervals over clusters, comparisons (pure).

A benchmark's rows are not independent: questions about one image, figure or chain succeed and fail
together. Intervals and tests here draw such clusters, never single rows, and arms that were trained
with several seeds are compared by seed.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

NUM_RESAMPLES = 4000
"""Of a bootstrap: p-values have steps of 1 / 2000."""
_DRAWS_AT_ONCE = 4_000_000
"""Counts held at once, resamples times clusters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with its 95 % interval; nan where nothing is known."""

    mean: float
    low: float
    high: float


def pass_at_k(num_correct: int, num_samples: int, k: int) -> float:
    """Chance that at least one of `k` samples is correct, without bias (Chen et al. 2021, Eq. 1).

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
    """Mean over rows, and its percentile interval by a bootstrap that draws clusters.

    Each resample draws as many clusters as there are, with replacement, and takes the mean over the
    rows of those drawn (a ratio: clusters differ in size). With one cluster nothing is known about
    the spread, and the interval is nan.

    Args:
        values: score of each row [rows].
        clusters: name of each row's cluster [rows].
        seed: of the draws; the same input gives the same interval.
    """
    rows = np.asarray(values, dtype=float)
    if not len(rows):
        return Interval(mean=math.nan, low=math.nan, high=math.nan)
    means = _resampled_means(rows, clusters, seed)
    low, high = np.quantile(means, (0.025, 0.975)) if len(means) else (math.nan, math.nan)
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
    """Two-sided, of no difference; nan where nothing is known."""
    test: str
    """`mcnemar` or `bootstrap`."""


def compare_paired(
    a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable], *, seed: int = 0
) -> PairedScores:
    """Compare the scores that two models have on the same rows.

    The interval is that of :func:`clustered_interval` on the differences. The test is McNemar's
    exact one (a binomial test of the rows that only one model solves) where every score is 0 or 1
    and every row is its own cluster. Otherwise it is the bootstrap: twice the smaller fraction of
    resampled differences on one side of 0, never below 1 / (resamples + 1).

    Args:
        a: [rows].
        b: [rows], in the same order.
        clusters: [rows].
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    differences = second - first
    num_clusters = len(set(clusters))
    interval = clustered_interval(differences.tolist(), clusters, seed=seed)
    binary = bool(np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all())
    if binary and num_clusters == len(differences):
        test, p = "mcnemar", mcnemar(int((differences > 0).sum()), int((differences < 0).sum()))
    else:
        test, p = "bootstrap", _bootstrap_p(_resampled_means(differences, clusters, seed))
    return PairedScores(
        num_rows=len(differences),
        num_clusters=num_clusters,
        mean_a=float(first.mean()) if len(first) else math.nan,
        mean_b=float(second.mean()) if len(second) else math.nan,
        difference=interval,
        p=p if len(differences) else math.nan,
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

    However many rows a benchmark has, the arms have no more evidence than seeds. With one seed in
    an arm the interval and p are nan: the spread between seeds is unknown. Equal scores within both
    arms give nan too.
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


def _resampled_means(values: np.ndarray, clusters: Sequence[Hashable], seed: int) -> np.ndarray:
    """Mean of each resample [resamples]; empty with fewer than two clusters."""
    numbers: dict[Hashable, int] = {}
    places = np.array(
        [numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=int
    )
    assert len(places) == len(values), "a cluster for each row"
    if len(numbers) < 2:
        return np.empty(0)
    sums, sizes = np.bincount(places, weights=values), np.bincount(places)
    rng = np.random.default_rng(seed)
    evenly = np.full(len(numbers), 1 / len(numbers))
    step = max(_DRAWS_AT_ONCE // len(numbers), 1)
    means = []
    for start in range(0, NUM_RESAMPLES, step):
        drawn = rng.multinomial(len(numbers), evenly, size=min(step, NUM_RESAMPLES - start))
        means.append((drawn @ sums) / (drawn @ sizes))
    return np.concatenate(means)


def _bootstrap_p(means: np.ndarray) -> float:
    if not len(means):
        return math.nan
    below, above = int((means <= 1e-12).sum()), int((means >= -1e-12).sum())
    return min(2 * (min(below, above) + 1) / (len(means) + 1), 1.0)
