"""Visual attention and the accuracy of anchors against the position in a response."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vapo_verl.analysis.statistics import wilson_interval

if TYPE_CHECKING:
    from vapo_verl.run_folder.rollouts import RolloutAnchor

NUM_PROGRESS_BINS = 20
NUM_TOKEN_BINS = 128
NUM_CELLS = 2000
"""Between 0 and 1; a quantile is off by at most half a cell, 0.00025."""
EARLY, LATE = 1 / 3, 2 / 3
"""First and last third of a response."""
NUM_POSITION_BINS = NUM_PROGRESS_BINS // 2
NUM_PROBABILITY_BINS = 10


class AttentionCurves:
    """Sums over the responses of a run, by progress and by generated token.

    Progress of token t (from 0) of T is (t + 1) / T. By progress a response counts once in each
    bin, with the mean of its tokens there, so that long responses weigh no more than short ones. By
    token, each of `token_width` neighbouring tokens counts; the width doubles until the longest
    response fits.
    """

    def __init__(self) -> None:
        self.by_progress = RatioHistograms(NUM_PROGRESS_BINS)
        self.by_token = RatioHistograms(NUM_TOKEN_BINS)
        self.token_width = 1
        self.num_responses = 0
        self.num_other_layers = 0
        self.layers: tuple[int, ...] = ()
        self._layer_sums: np.ndarray | None = None
        self._layer_counts: np.ndarray | None = None

    def add(
        self,
        ratio: np.ndarray,
        by_layer: np.ndarray | None = None,
        layers: tuple[int, ...] = (),
    ) -> None:
        """Count one response; one without a known value is left out.

        Args:
            ratio: visual attention ratio [tokens].
            by_layer: that of each layer [tokens, layers].
            layers: the model's layers in the columns of `by_layer`, where they are known.
        """
        if not np.isfinite(ratio).any():
            return
        self.num_responses += 1
        bins = progress_bins(len(ratio), NUM_PROGRESS_BINS)
        means = _bin_means(ratio, bins)
        self.by_progress.add(np.arange(NUM_PROGRESS_BINS), means)
        while len(ratio) > NUM_TOKEN_BINS * self.token_width:
            self.by_token.merge_pairs()
            self.token_width *= 2
        self.by_token.add(np.arange(len(ratio)) // self.token_width, ratio)
        if by_layer is not None and len(by_layer) == len(ratio):
            self._add_layers(by_layer, layers, bins)

    def layer_means(self) -> np.ndarray | None:
        """Mean ratio [progress bins, layers] over all tokens; None where none was exported."""
        if self._layer_sums is None or self._layer_counts is None:
            return None
        known = self._layer_counts > 0
        return np.where(known, self._layer_sums / np.maximum(self._layer_counts, 1), np.nan)

    def _add_layers(self, by_layer: np.ndarray, layers: tuple[int, ...], bins: np.ndarray) -> None:
        num_layers = by_layer.shape[1]
        if self._layer_sums is None or self._layer_counts is None:
            self._layer_sums = np.zeros((NUM_PROGRESS_BINS, num_layers))
            self._layer_counts = np.zeros((NUM_PROGRESS_BINS, num_layers), dtype=np.int64)
            self.layers = layers
        if num_layers != self._layer_sums.shape[1] or layers != self.layers:
            self.num_other_layers += 1  # resumed with other layers
            return
        known = np.isfinite(by_layer)
        np.add.at(self._layer_sums, bins, np.where(known, by_layer, 0.0))
        np.add.at(self._layer_counts, bins, known)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseAttention:
    """Three statistics of one response, each nan where it is not defined."""

    mean: float
    slope: float
    """Least-squares slope of the ratio against progress: its change over the response."""
    late_over_early: float
    """Mean of the last third over the mean of the first."""


def response_attention(ratio: np.ndarray) -> ResponseAttention:
    """Statistics of a ratio [tokens]; tokens without a value are left out."""
    known = np.isfinite(ratio)
    values = ratio[known]
    progress = ((np.arange(len(ratio)) + 1) / max(len(ratio), 1))[known]
    early, late = _mean(values[progress <= EARLY]), _mean(values[progress >= LATE])
    return ResponseAttention(
        mean=_mean(values),
        slope=_slope(progress, values),
        late_over_early=late / early if early > 0 else float("nan"),
    )


def half_life(where: np.ndarray, values: np.ndarray) -> float:
    """Distance over which a curve falls to half of its first known value, linear between points.

    In units of `where`, from the first known point. nan if it never does, or without a curve.
    """
    known = np.isfinite(values)
    where, values = where[known], values[known]
    if len(values) == 0 or values[0] <= 0:
        return float("nan")
    below = np.flatnonzero(values <= values[0] / 2)
    if len(below) == 0:
        return float("nan")
    last = int(below[0])
    fraction = (values[last - 1] - values[0] / 2) / (values[last - 1] - values[last])
    return float(where[last - 1] + fraction * (where[last] - where[last - 1]) - where[0])


def progress_bins(num_tokens: int, num_bins: int) -> np.ndarray:
    """The bin of each token [tokens]: bin b holds progress in (b / bins, (b + 1) / bins].

    Progress counts the token itself, (t + 1) / T. The estimator counts the tokens before it,
    t / T: see `vapo_verl.advantage.vapo.bins_before_token`.
    """
    position = np.arange(1, num_tokens + 1)
    return np.minimum((position * num_bins - 1) // max(num_tokens, 1), num_bins - 1)


def _bin_means(values: np.ndarray, bins: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    counts = np.bincount(bins[known], minlength=NUM_PROGRESS_BINS)
    sums = np.bincount(bins[known], weights=values[known], minlength=NUM_PROGRESS_BINS)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 2:
        return float("nan")
    centred = x - x.mean()
    return float((centred * y).sum() / np.square(centred).sum())


class RatioHistograms:
    """One histogram of values in [0, 1] per bin."""

    def __init__(self, num_bins: int) -> None:
        self.counts = np.zeros((num_bins, NUM_CELLS), dtype=np.int64)

    def add(self, bins: np.ndarray, values: np.ndarray) -> None:
        """Count `values` [n] in `bins` [n]; nan is left out, values outside [0, 1] are clipped."""
        known = np.isfinite(values)
        cells = np.clip((values[known] * NUM_CELLS).astype(np.int64), 0, NUM_CELLS - 1)
        np.add.at(self.counts, (bins[known], cells), 1)

    def merge_pairs(self) -> None:
        """Bins 2i and 2i + 1 become bin i; the upper half is empty after it."""
        half = len(self.counts) // 2
        self.counts[:half] = self.counts[0 : 2 * half : 2] + self.counts[1 : 2 * half : 2]
        self.counts[half:] = 0

    def sizes(self) -> np.ndarray:
        """Values in each bin."""
        return self.counts.sum(axis=1)

    def quantile(self, q: float) -> np.ndarray:
        """Per bin [bins], the middle of the cell of the ceil(q n)-th value; nan without one."""
        sizes = self.sizes()
        rank = np.maximum(np.ceil(q * sizes), 1)
        cell = (self.counts.cumsum(axis=1) < rank[:, None]).sum(axis=1)
        return np.where(sizes > 0, (cell + 0.5) / NUM_CELLS, np.nan)


def progress_centres() -> np.ndarray:
    """Middles of the progress bins."""
    return (np.arange(NUM_PROGRESS_BINS) + 0.5) / NUM_PROGRESS_BINS


def token_centres(width: int) -> np.ndarray:
    """Middles of the token bins; tokens count from 1."""
    return np.arange(NUM_TOKEN_BINS) * width + (width + 1) / 2


class AnchorAccuracy:
    """Counts over all anchors of a run, by progress a_k / T and by p(yes)."""

    def __init__(self) -> None:
        self.num_probed = np.zeros(NUM_POSITION_BINS, dtype=np.int64)
        self.num_correct = np.zeros(NUM_POSITION_BINS, dtype=np.int64)
        self.num_labels_true = 0
        self.num_yes = 0
        self.num_with_probability = np.zeros(NUM_PROBABILITY_BINS, dtype=np.int64)
        self.true_of_bin = np.zeros(NUM_PROBABILITY_BINS, dtype=np.int64)
        self.probability_of_bin = np.zeros(NUM_PROBABILITY_BINS)
        self._squared_error = 0.0

    def add(self, anchors: Sequence[RolloutAnchor], num_tokens: int) -> None:
        """Count the anchors of one response of `num_tokens`; one without an answer is left out."""
        for anchor in anchors:
            if anchor.correct is None or anchor.position is None or num_tokens <= 0:
                continue
            by_progress = _bin(anchor.position / num_tokens, NUM_POSITION_BINS)
            self.num_probed[by_progress] += 1
            self.num_correct[by_progress] += anchor.correct
            self.num_labels_true += bool(anchor.label)
            self.num_yes += bool(anchor.answer)
            self._add_probability(anchor.p_yes, bool(anchor.label))

    def _add_probability(self, p_yes: float | None, label: bool) -> None:
        if p_yes is None or not math.isfinite(p_yes):
            return
        by_probability = _bin(p_yes, NUM_PROBABILITY_BINS)
        self.num_with_probability[by_probability] += 1
        self.true_of_bin[by_probability] += label
        self.probability_of_bin[by_probability] += p_yes
        self._squared_error += (p_yes - label) ** 2

    @property
    def num_anchors(self) -> int:
        return int(self.num_probed.sum())

    def accuracy(self) -> float:
        """Fraction of correct answers; nan without anchors."""
        return _fraction(self.num_correct.sum(), self.num_anchors)

    def brier(self) -> float:
        """Mean of (p(yes) - label)^2: 0 is perfect, always answering 0.5 has 0.25."""
        return _fraction(self._squared_error, self.num_with_probability.sum())

    def calibration_error(self) -> float:
        """sum_b n_b / n |fraction of true labels - mean p(yes)| over the bins of p(yes)."""
        gaps = np.abs(self.true_of_bin - self.probability_of_bin).sum()
        return _fraction(gaps, self.num_with_probability.sum())


def wilson(num_correct: int, num_probed: int) -> tuple[float, float]:
    """95 % interval of a rate (Wilson's score interval); (nan, nan) without anchors.

    It assumes independent answers. Those of one response are not quite independent: the real
    interval is somewhat wider.
    """
    return wilson_interval(num_correct, num_probed) if num_probed else (math.nan, math.nan)


def _bin(value: float, num_bins: int) -> int:
    return min(max(int(value * num_bins), 0), num_bins - 1)


def _fraction(part: float, total: float) -> float:
    return float(part / total) if total else math.nan
