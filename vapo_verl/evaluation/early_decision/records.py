"""The rows of an early-decision run, read back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vapo_verl.evaluation.probing.journal import ROWS_FILE, read_records
from vapo_verl.run_folder import RunError

COMMAND = "early-decision"


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
        RunError: a line that is no record of this command, or rows with other cuts.
    """
    records = read_records(folder)
    if not records:
        return None
    try:
        rows = tuple(map(_row, records))
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{folder / ROWS_FILE}: a row lacks or has a bad {error}; it is not from `{COMMAND}` "
            "of this version: delete the folder and run it again"
        ) from error
    decision = EarlyDecision(rows=rows)
    if any(tuple(c.target for c in row.cuts) != decision.targets for row in rows):
        raise RunError(f"{folder / ROWS_FILE}: rows differ in their cuts; delete the folder")
    return decision


def _row(record: Mapping[str, Any]) -> EarlyRow:
    start, end = record["reasoning"]
    cuts = tuple(Cut(**cut) for cut in record["cuts"])
    return EarlyRow(**{**record, "reasoning": (start, end), "cuts": cuts})
