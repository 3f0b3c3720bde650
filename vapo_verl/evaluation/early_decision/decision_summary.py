"""Rows of an early-decision run, read back, and statistics of their forced answers (pure)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from vapo_verl.analysis.statistics import PairedRates, Rate, paired_rates, rate, rate_of
from vapo_verl.evaluation.probing.journal import ROWS_FILE, read_records, read_settings
from vapo_verl.run_folder import RunError

COMMAND = "early-decision"
_NOT_OPTIONS = ("MODEL", "DATA", "--num-rows", "--attention-layers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The answer forced at one cut."""

    target: float
    """Requested fraction of the reasoning."""
    position: int
    """Tokens of the response before the cut."""
    answer: str | None
    right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyRow:
    """One response with its cuts; the fields are explained in the package's docstring."""

    row: int
    data_source: str
    index: int | None
    ground_truth: str
    response: str
    num_tokens: int
    reasoning: tuple[int, int]
    finish: str
    answer: str | None
    right: bool
    cuts: tuple[Cut, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyDecision:
    """All rows of a run, by row number; at least one."""

    rows: tuple[EarlyRow, ...]
    data: str | None = None
    """Name and digest of the data file; None if the folder does not record it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What responses and forced answers depend on, beside the model and the rows."""

    @property
    def targets(self) -> tuple[float, ...]:
        """Rising; the first is 0 and the last 1."""
        return tuple(cut.target for cut in self.rows[0].cuts)

    def right(self) -> np.ndarray:
        """bool [rows, cuts]."""
        return np.array([[cut.right for cut in row.cuts] for row in self.rows], dtype=bool)


def load_early_decision(folder: Path) -> EarlyDecision | None:
    """Read `folder` (`RUN_DIR/diagnostics/early-decision`), finished or not; None without a row.

    Raises:
        RunError: a line that is not a record of this command, rows with different cuts, or damaged
            settings.
    """
    records = read_records(folder)
    if not records:
        return None
    try:
        rows = tuple(map(_row, records))
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{folder / ROWS_FILE}: a row lacks or has wrong {error}; it is not from `{COMMAND}` "
            "of this version: delete the folder and run it again"
        ) from error
    settings = read_settings(folder)
    options = {name: value for name, value in settings.items() if name not in _NOT_OPTIONS}
    decision = EarlyDecision(rows=rows, data=settings.get("DATA"), options=options)
    if any(tuple(c.target for c in row.cuts) != decision.targets for row in rows):
        raise RunError(f"{folder / ROWS_FILE}: rows differ in their cuts; delete the folder")
    return decision


def _row(record: Mapping[str, Any]) -> EarlyRow:
    start, end = record["reasoning"]
    cuts = tuple(Cut(**cut) for cut in record["cuts"])
    return EarlyRow(**{**record, "reasoning": (start, end), "cuts": cuts})


class CutRate(TypedDict):
    """A cut and a rate of rows at it."""

    target: float
    share: Rate


class Recoverable(TypedDict):
    """Rows incorrect at 100 % and correct at some earlier cut."""

    of_errors: Rate
    """Of the rows incorrect at 100 %."""
    of_rows: Rate


class RecoverableAtCut(Recoverable):
    """The same for one cut, common to all rows."""

    target: float


def accuracy_by_cut(decision: EarlyDecision) -> list[CutRate]:
    """Fraction of correct answers at each cut."""
    columns = decision.right().T
    return [
        CutRate(target=target, share=rate_of(column))
        for target, column in zip(decision.targets, columns, strict=True)
    ]


def peak(decision: EarlyDecision) -> CutRate:
    """The cut with the most correct answers, the earliest of several."""
    return accuracy_by_cut(decision)[_peak(decision)]


def drop_from_peak(decision: EarlyDecision) -> PairedRates:
    """The last cut against the peak over the same rows: `difference` is at most 0.

    The peak is the best of many cuts, chosen in these same rows. So the drop is somewhat too large,
    and its interval and p ignore the choice.
    """
    right = decision.right()
    return paired_rates(right[:, _peak(decision)], right[:, -1])


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
        "response_accuracy": rate_of([row.right for row in rows]),
        "truncated": rate_of([row.finish == "length" for row in rows]),
        "mean_tokens": float(np.mean([row.num_tokens for row in rows])),
        "forced_agrees_with_response": rate_of(
            [row.cuts[-1].answer == row.answer for row in rows if row.answer is not None]
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
    return Recoverable(of_errors=rate(num, int(wrong.sum())), of_rows=rate(num, len(right)))
