"""What the anchors of a run say: right by position, and whether p(yes) means what it says."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vapo_verl.analysis.attention_curves import NUM_PROGRESS_BINS as _FINE_BINS
from vapo_verl.analysis.statistics import wilson_interval

NUM_POSITION_BINS = _FINE_BINS // 2
NUM_PROBABILITY_BINS = 10


class AnchorAccuracy:
    """Counts over all anchors of a run, by progress a_k / T and by p(yes)."""

    def __init__(self) -> None:
        self.asked = np.zeros(NUM_POSITION_BINS, dtype=np.int64)
        self.right = np.zeros(NUM_POSITION_BINS, dtype=np.int64)
        self.num_labels_true = 0
        self.num_yes = 0
        self.num_with_probability = np.zeros(NUM_PROBABILITY_BINS, dtype=np.int64)
        self.true_of_bin = np.zeros(NUM_PROBABILITY_BINS, dtype=np.int64)
        self.probability_of_bin = np.zeros(NUM_PROBABILITY_BINS)
        self._squared_error = 0.0

    def add(self, anchors: Sequence[Mapping[str, Any]], num_tokens: int) -> None:
        """Count the anchors of one response of `num_tokens`; one without an answer is left out."""
        for anchor in anchors:
            if anchor["correct"] is None or anchor["position"] is None or num_tokens <= 0:
                continue
            progress = anchor["position"] / num_tokens
            place = _bin(progress, NUM_POSITION_BINS)
            self.asked[place] += 1
            self.right[place] += bool(anchor["correct"])
            self.num_labels_true += bool(anchor["label"])
            self.num_yes += bool(anchor["answer"])
            self._add_probability(anchor["p_yes"], bool(anchor["label"]))

    def _add_probability(self, p_yes: float | None, label: bool) -> None:
        if p_yes is None or not math.isfinite(p_yes):
            return
        place = _bin(p_yes, NUM_PROBABILITY_BINS)
        self.num_with_probability[place] += 1
        self.true_of_bin[place] += label
        self.probability_of_bin[place] += p_yes
        self._squared_error += (p_yes - label) ** 2

    @property
    def num_anchors(self) -> int:
        return int(self.asked.sum())

    def accuracy(self) -> float:
        """Share of right answers; nan without anchors."""
        return _share(self.right.sum(), self.num_anchors)

    def brier(self) -> float:
        """Mean of (p(yes) - label)^2: 0 is perfect, always answering 0.5 has 0.25."""
        return _share(self._squared_error, self.num_with_probability.sum())

    def calibration_error(self) -> float:
        """sum_b n_b / n |share of true labels - mean p(yes)| over the bins of p(yes)."""
        gaps = np.abs(self.true_of_bin - self.probability_of_bin).sum()
        return _share(gaps, self.num_with_probability.sum())


def wilson(right: int, asked: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson's score interval); (nan, nan) of nothing.

    It takes the answers as independent. Anchors of one response are not quite, so that the real
    interval is somewhat wider.
    """
    return wilson_interval(right, asked) if asked else (math.nan, math.nan)


def _bin(share: float, num_bins: int) -> int:
    return min(max(int(share * num_bins), 0), num_bins - 1)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan
