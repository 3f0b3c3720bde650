"""Runs of another sitting or machine, from the CSV files of docs/study.

Of a run they have the row of results, not its files, so that it is compared but not plotted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.study.figures import read_csv
from benchmarks.study.forgetful import (
    NO_SEED,
    PLANS,
    ForgetfulPlan,
    Outcome,
    read_outcome,
    runs_of,
)
from benchmarks.study.workspace import WARM_START, Run, StudyError, Workspace

Checkpoint = tuple[str, str, int]
"""Memory, arm and seed."""
_DIGITS = 4
"""Of a CSV file."""


def read_recorded(folder: Path, plan: ForgetfulPlan) -> list[Outcome]:
    """Checkpoints of a plan in the files of all parts, once each: parts share their runs."""
    found: dict[Checkpoint, Outcome] = {}
    for part in PLANS:
        for row in _rows(folder / f"{part}.csv", plan):
            found.setdefault(_checkpoint(row), row)
    return list(found.values())


def _rows(file: Path, plan: ForgetfulPlan) -> list[Outcome]:
    """Of a plan's runs and warm starts."""
    wanted = {(run.arm, run.seed) for run in runs_of(plan)} | {(WARM_START, NO_SEED)}
    rows = read_csv(file, Outcome) if file.exists() else []
    return [row for row in rows if row.memory in plan.memories and (row.arm, row.seed) in wanted]


def _checkpoint(outcome: Outcome) -> Checkpoint:
    return outcome.memory, outcome.arm, outcome.seed


def runs_to_make(plan: ForgetfulPlan, memory: str, recorded: Iterable[Outcome]) -> list[Run]:
    """Runs of the plan that are not recorded, in its order."""
    made = {(each.arm, each.seed) for each in recorded if each.memory == memory}
    return [run for run in runs_of(plan) if (run.arm, run.seed) not in made]


def check_start(work: Workspace, memory: str, recorded: Iterable[Outcome]) -> None:
    """A warm start must equal the recorded one, or its runs cannot stand beside those.

    Raises:
        StudyError: a result differs in the digits of a CSV file, as between kinds of CPU.
    """
    here = read_outcome(work, memory, WARM_START, WARM_START, NO_SEED)
    for there in recorded:
        if (there.memory, there.arm) != (memory, WARM_START):
            continue
        for name, value in asdict(there).items():
            ours = getattr(here, name)
            if isinstance(value, float) and f"{ours:.{_DIGITS}f}" != f"{value:.{_DIGITS}f}":
                raise StudyError(
                    f"the warm start of memory {memory} differs from the recorded one: {name} is "
                    f"{ours:.{_DIGITS}f}, not {value:.{_DIGITS}f}; leave --recorded out and make "
                    "all runs here"
                )


def check_none_is_lost(
    file: Path, outcomes: Mapping[str, Sequence[Outcome]], plan: ForgetfulPlan
) -> None:
    """A report over a file must have every run of the plan that the file has.

    Raises:
        StudyError: one would be lost.
    """
    kept = {_checkpoint(outcome) for found in outcomes.values() for outcome in found}
    lost = [row for row in _rows(file, plan) if _checkpoint(row) not in kept]
    if lost:
        first = lost[0]
        raise StudyError(
            f"{file} has {len(lost)} results that are not measured here, such as {first.arm} of "
            f"seed {first.seed} and memory {first.memory}: add --recorded to keep them"
        )
