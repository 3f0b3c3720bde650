"""Importer of VAPO-Thinker-train36k, the released rows with claims.

Columns `problem`, `answer`, `images` (list of {bytes, path}), `claim_1` .. `claim_20`, and
`label_1` .. `label_20`, each "CORRECT" or "WRONG". Claim i and label i make one Claim before
anything is dropped or drawn, so that a label cannot come apart from its claim.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from vapo_verl.data.claims_column import Claim
from vapo_verl.data.errors import BadCell, FileError, shown
from vapo_verl.data.importers.plain import (
    RowReader,
    SourceRow,
    basic_columns,
    read_basics,
    read_text,
)

_CLAIM_COLUMN = re.compile(r"claim_(\d+)")
_LABELS = {"CORRECT": True, "WRONG": False}
_LABEL_FIX = "correct the label to CORRECT or WRONG, or blank the claim"


def vapo_thinker_reader(path: str | Path, present: list[str]) -> RowReader:
    """How to read a file with these columns.

    Raises:
        FileError: there is no claim column, or one without its label column.
    """
    numbers = sorted(int(match[1]) for name in present if (match := _CLAIM_COLUMN.fullmatch(name)))
    if not numbers:
        raise FileError(f"{path}: no claim_1, claim_2, ... among {present}; use import-plain")
    if unlabelled := [f"claim_{i}" for i in numbers if f"label_{i}" not in present]:
        raise FileError(f"{path}: {unlabelled} have no label column; restore label_1, label_2, ...")
    pairs = [name for i in numbers for name in (f"claim_{i}", f"label_{i}")]
    return RowReader(
        columns=(*basic_columns(present, question="problem", images="images"), *pairs),
        image_column="images",
        read=partial(_read_row, numbers=numbers),
    )


def _read_row(row: Mapping[str, object], numbers: Sequence[int]) -> SourceRow:
    asked = [i for i in numbers if read_text(row, f"claim_{i}")]
    return dataclasses.replace(
        read_basics(row, question="problem", images="images"),
        claims=tuple(_read_claim(row, i) for i in asked),
        num_blank_claims=len(numbers) - len(asked),
    )


def _read_claim(row: Mapping[str, object], number: int) -> Claim:
    label = row[f"label_{number}"]
    key = label.strip().upper() if isinstance(label, str) else None
    if key not in _LABELS:
        raise BadCell(f"label_{number}", f"label is {shown(label)}", _LABEL_FIX)
    return Claim(read_text(row, f"claim_{number}"), _LABELS[key])
