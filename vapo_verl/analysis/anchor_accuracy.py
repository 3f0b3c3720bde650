"""Accuracy of a run's anchors by position, and the calibration of p(yes)."""

import math
from collections.abc import Sequence

import numpy as np

from vapo_verl.analysis.attention_curves import NUM_PROGRESS_BINS
from vapo_verl.analysis.statistics import wilson_interval
from vapo_verl.run_folder.rollouts import RolloutAnchor

NUM_POSITION_BINS = NUM_PROGRESS_BINS // 2
NUM_PROBABILITY_BINS = 10


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

    It takes the answers as independent. Those of one response are not quite: the real interval is
    somewhat wider.
    """
    return wilson_interval(num_correct, num_probed) if num_probed else (math.nan, math.nan)


def _bin(value: float, num_bins: int) -> int:
    return min(max(int(value * num_bins), 0), num_bins - 1)


def _fraction(part: float, total: float) -> float:
    return float(part / total) if total else math.nan
