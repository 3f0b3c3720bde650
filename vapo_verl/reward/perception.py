"""Perception reward: anchor accuracy along a response, with late anchors weighted more."""

import math
import operator
from collections.abc import Collection

import numpy as np

CHANCE = 0.5
"""Expected accuracy of guessing yes or no."""


def perception_score(
    correct: Collection[float],
    positions: Collection[int],
    length: int,
    late_emphasis: float,
    chance_corrected: bool = False,
) -> float:
    """Weighted fraction of correct anchors (Eq. 4 of arXiv 2509.25848), in [0, 1].

    R_perc = sum_k w_k s_k / sum_k w_k,  w_k = exp(beta * a_k / T)

    Args:
        correct: s_k [K], whether the yes/no answer at anchor k is the claim's label; or, soft,
            the probability given to the label, in [0, 1].
        positions: a_k [K], tokens of the response before anchor k, 1..length, in any order and
            possibly repeated.
        length: T, tokens of the response.
        late_emphasis: beta; 0 is the plain mean, larger leans on late anchors, negative on
            early ones.
        chance_corrected: map guessing to 0: max((R - 0.5) / 0.5, 0), as the released code does.

    Edge cases: no anchors is 0.0, whatever the length.

    Raises:
        ValueError: lengths that differ, a score outside [0, 1] or nan, a position outside
            1..length, a late emphasis that is not finite.
    """
    _check_anchors(correct, positions, length)
    score = _late_mean(correct, positions, length, late_emphasis)
    return max((score - CHANCE) / (1 - CHANCE), 0.0) if chance_corrected else score


def attention_perception_score(visual_attention: Collection[float], late_emphasis: float) -> float:
    """Attention in place of anchors: the late-emphasis mean of the visual attention ratio.

    The ablation of Table 10 of arXiv 2509.25848: Eq. 4 with s the ratio a_t [T] of each
    response token, averaged over layers, and position t = 1..T. A nan (no image in the
    context, or not captured) is left out and keeps its position; all nan, or no token, is 0.0.

    Raises:
        ValueError: an array that is not [T], an infinite ratio, a late emphasis not finite.
    """
    ratio = np.asarray(visual_attention, dtype=np.float64)
    if ratio.ndim != 1:
        raise ValueError(f"visual_attention has shape {ratio.shape}: average it to [T] first")
    if np.isinf(ratio).any():
        raise ValueError("visual_attention holds an infinite ratio: mark missing tokens with nan")
    present = np.flatnonzero(~np.isnan(ratio))
    return _late_mean(ratio[present], present + 1, len(ratio), late_emphasis)


def _late_mean(
    values: Collection[float], positions: Collection[int], length: int, late_emphasis: float
) -> float:
    """Mean under the weights of Eq. 4."""
    if not math.isfinite(late_emphasis):
        raise ValueError(f"late_emphasis={late_emphasis}: give a finite number, 1.5 in the paper")
    if len(values) == 0:
        return 0.0
    scores = np.asarray(values, dtype=np.float64)
    weights = late_weights(positions, length, late_emphasis)
    mean = scores @ weights / weights.sum()
    return float(np.clip(mean, scores.min(), scores.max()))  # rounding may step over an end


def late_weights(positions: Collection[int], length: int, late_emphasis: float) -> np.ndarray:
    """w_k = exp(beta * a_k / T) of Eq. 4, divided by the largest so that none overflows: [K].

    Args:
        positions: a_k [K], 1..length; at least one.
        length: T, tokens of the response.
        late_emphasis: beta.
    """
    exponents = late_emphasis * (np.asarray(positions, dtype=np.float64) / length)
    return np.exp(exponents - exponents.max())


def _check_anchors(correct: Collection[float], positions: Collection[int], length: int) -> None:
    if len(correct) != len(positions):
        raise ValueError(
            f"correct has {len(correct)} anchors and positions {len(positions)}: give one of each"
        )
    for score in correct:
        if not 0 <= float(score) <= 1:
            raise ValueError(f"correct holds {score}: give booleans or probabilities in [0, 1]")
    for position in positions:
        if not 1 <= operator.index(position) <= length:
            raise ValueError(
                f"positions holds {position}, length is {length}: give tokens in 1..length"
            )
