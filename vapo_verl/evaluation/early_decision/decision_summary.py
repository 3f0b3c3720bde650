"""Statistics of the answers forced at the cuts (pure)."""

from typing import Any, TypedDict

import numpy as np

from vapo_verl.analysis.statistics import PairedShares, Share, paired_shares, share, share_of
from vapo_verl.evaluation.early_decision.records import EarlyDecision


class CutRate(TypedDict):
    """A cut and a rate of rows at it."""

    target: float
    share: Share


class Recoverable(TypedDict):
    """Rows incorrect at 100 % and correct at some earlier cut."""

    of_errors: Share
    """Of the rows incorrect at 100 %."""
    of_rows: Share


class RecoverableAtCut(Recoverable):
    """The same for one cut, common to all rows."""

    target: float


def accuracy_by_cut(decision: EarlyDecision) -> list[CutRate]:
    """Fraction of correct answers at each cut."""
    columns = decision.right().T
    return [
        CutRate(target=target, share=share_of(column))
        for target, column in zip(decision.targets, columns, strict=True)
    ]


def peak(decision: EarlyDecision) -> CutRate:
    """The cut with the most correct answers, the earliest of several."""
    return accuracy_by_cut(decision)[_peak(decision)]


def drop_from_peak(decision: EarlyDecision) -> PairedShares:
    """The last cut against the peak over the same rows: `difference` is at most 0.

    The peak is the best of many cuts, found in these same rows. So the drop is
    somewhat too large, and its interval and p take no account of the choice.
    """
    right = decision.right()
    return paired_shares(right[:, _peak(decision)], right[:, -1])


def recoverable_any(decision: EarlyDecision) -> Recoverable:
    """Rows incorrect at 100 % that are correct at any earlier cut.

    An upper bound: with many cuts some row is correct by luck, and the cut is not known beforehand.
    """
    right = decision.right()
    return _recoverable(right, np.any(right[:, :-1], axis=1))


def recoverable_single(decision: EarlyDecision) -> RecoverableAtCut:
    """The same for the one earlier cut that recovers the most rows, the earliest of several."""
    right = decision.right()
    gained = (~right[:, -1:] & right[:, :-1]).sum(axis=0)
    best = int(np.argmax(gained))
    return RecoverableAtCut(target=decision.targets[best], **_recoverable(right, right[:, best]))


def summarise(decision: EarlyDecision) -> dict[str, Any]:
    """All of the above: the content of `summary.json`."""
    rows = decision.rows
    return {
        "num_rows": len(rows),
        "response_accuracy": share_of([row.right for row in rows]),
        "truncated": share_of([row.finish == "length" for row in rows]),
        "mean_tokens": float(np.mean([row.num_tokens for row in rows])),
        "forced_agrees_with_response": share_of(
            [row.cuts[-1].answer == row.answer for row in rows]
        ),
        "cuts": accuracy_by_cut(decision),
        "peak": peak(decision),
        "drop_from_peak": drop_from_peak(decision),
        "recoverable_any": recoverable_any(decision),
        "recoverable_single": recoverable_single(decision),
    }


def _peak(decision: EarlyDecision) -> int:
    return int(np.argmax(decision.right().sum(axis=0)))


def _recoverable(right: np.ndarray, right_earlier: np.ndarray) -> Recoverable:
    wrong = ~right[:, -1]
    num = int(np.sum(wrong & right_earlier))
    return Recoverable(of_errors=share(num, int(wrong.sum())), of_rows=share(num, len(right)))
