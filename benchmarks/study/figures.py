"""Results of each run, in total and per held-out row."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from benchmarks.study.measuring import OTHER_IMAGE_FOLDER
from benchmarks.study.reads import read_scenes, summarise_reads
from benchmarks.study.workspace import TEST, Run, Workspace
from vapo_verl.evaluation.early_decision import load_early_decision, summarise
from vapo_verl.evaluation.perception.perception_command import PARTS, part_of
from vapo_verl.evaluation.perception.perception_command import summarise as summarise_perception
from vapo_verl.evaluation.probing.journal import read_records

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

AnyRow = TypeVar("AnyRow", bound="DataclassInstance")
_TYPES: Mapping[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float}
"""Name of a field's type -> the type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One checkpoint on the held-out rows; rates in 0..1."""

    arm: str
    seed: int
    accuracy: float
    format: float
    claims_start: float
    """Accuracy on claims directly after the prompt; then in each third of the response."""
    claims_early: float
    claims_middle: float
    claims_late: float
    yes_rate: float
    attention: float
    """Visual attention ratio, mean over a response's tokens, then over responses."""
    attention_late_over_early: float
    attention_slope: float
    tokens: float
    peak: float
    """Best accuracy over the early-decision cuts; `peak_at`: at which cut."""
    peak_at: float
    recoverable: float
    """Rows incorrect at 100 % of the reasoning and correct at some earlier cut."""
    reads: float
    """Statements about cells in a response, repetitions included."""
    reads_early: float
    """Fraction of correct statements, in the first and last third of the response."""
    reads_late: float
    wrong_but_seen: float
    """Fraction of the incorrect responses whose statements about the image are all correct."""
    accuracy_other_image: float
    """With another row's image: a control for text alone."""


MEASURES = tuple(field.name for field in fields(Figures) if field.type == "float")


def read_figures(work: Workspace, name: str, arm: str, seed: int) -> Figures:
    """Read the results of `measure` for a checkpoint."""
    diagnostics = work.folder(name) / "diagnostics"
    records = read_records(diagnostics / "perception")
    perception = summarise_perception(records)
    reads = summarise_reads(records, read_scenes(work.data / TEST))
    other = summarise_perception(read_records(diagnostics / OTHER_IMAGE_FOLDER))
    decision = load_early_decision(diagnostics / "early-decision")
    assert decision is not None  # measured
    early = summarise(decision)
    claims, attention = perception["claims"], perception["attention"]
    return Figures(
        arm=arm,
        seed=seed,
        accuracy=perception["accuracy"]["share"],
        format=perception["format"],
        **{f"claims_{part}": claims[part]["share"] for part in PARTS},
        yes_rate=claims["yes_rate"]["share"],
        attention=attention["mean"],
        attention_late_over_early=attention["late_over_early"],
        attention_slope=attention["slope"],
        tokens=perception["mean_tokens"],
        peak=early["peak"]["share"]["share"],
        peak_at=early["peak"]["target"],
        recoverable=early["recoverable_any"]["of_rows"]["share"],
        reads=reads.number,
        reads_early=reads.early,
        reads_late=reads.late,
        wrong_but_seen=reads.wrong_but_seen,
        accuracy_other_image=other["accuracy"]["share"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemOutcome:
    """Results of a run on one held-out row."""

    row: int
    run: str
    right: int
    claims_late: float | None
    """Accuracy on its late claims; None without late claims."""


def read_outcomes(work: Workspace, run: Run, folder: str = "perception") -> list[ItemOutcome]:
    """Outcomes by row number, for the rows measured in `folder`."""
    records = read_records(work.folder(run.name) / "diagnostics" / folder)
    return [
        ItemOutcome(
            row=record["row"],
            run=run.name,
            right=int(record["right"]),
            claims_late=late_claims(record),
        )
        for record in records
    ]


def write_csv(path: Path, rows: Sequence[DataclassInstance]) -> None:
    """Write a line for each row; floats with four digits."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(rows[0])])
        for row in rows:
            writer.writerow([_cell(value) for value in asdict(row).values()])


def read_csv(path: Path, row: type[AnyRow]) -> list[AnyRow]:
    """Rows that :func:`write_csv` wrote; floats have four digits.

    Args:
        row: their dataclass, with fields of types str, int and float.
    """
    with path.open(newline="") as file:
        return [
            row(**{field.name: _TYPES[str(field.type)](line[field.name]) for field in fields(row)})
            for line in csv.DictReader(file)
        ]


def late_claims(record: Mapping[str, Any]) -> float | None:
    """Accuracy on the late claims of a row; None without late claims."""
    predictions = [
        anchor["correct"]
        for anchor in record["anchors"]
        if part_of(anchor["position"], record["num_tokens"]) == "late"
    ]
    return float(np.mean(predictions)) if predictions else None


def _cell(value: Any) -> Any:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else value
