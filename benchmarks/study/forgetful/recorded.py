"""Runs of another sitting or machine, from the CSV files of docs/study.

Of a run they have the row of results, not its files, so that it is compared but not plotted. A run
is compared with one of the same seed and warm start only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.study.figures import read_csv
from benchmarks.study.forgetful.compared import of_one_start
from benchmarks.study.forgetful.outcome import Outcome
from benchmarks.study.forgetful.plan import PLANS, ForgetfulPlan
from benchmarks.study.workspace import NO_SEED, WARM_START, Run, StudyError, runs_of


def read_recorded(folder: Path, plan: ForgetfulPlan) -> list[Outcome]:
    """Checkpoints of a plan in the files of all parts, once each: parts share their runs."""
    found: dict[tuple[str, str, str, int], Outcome] = {}
    for part in PLANS:
        for row in _rows(folder / f"{part}.csv", plan):
            found.setdefault(_key(row), row)
    return list(found.values())


def _key(row: Outcome) -> tuple[str, str, str, int]:
    """Of a run, or a warm start."""
    return row.memory, row.start, row.arm, row.seed


def _rows(file: Path, plan: ForgetfulPlan) -> list[Outcome]:
    """Of a plan's runs and warm starts."""
    wanted = {(run.arm, run.seed) for run in runs_of(plan)} | {(WARM_START, NO_SEED)}
    rows = read_csv(file, Outcome) if file.exists() else []
    return [row for row in rows if row.memory in plan.memories and (row.arm, row.seed) in wanted]


def runs_to_make(
    plan: ForgetfulPlan, memory: str, recorded: Iterable[Outcome], start: str | None
) -> list[Run]:
    """Runs of the plan that have to be made, in its order.

    Those of a seed of which all are recorded with one warm start have not; of another seed, those
    that are recorded with the warm start of this machine.

    Args:
        start: `forgetful.start_of` it; None: it is not made yet.
    """
    known = [each for each in recorded if each.memory == memory]
    wanted: list[Run] = []
    for seed in plan.seeds:
        of_seed = [each for each in known if each.seed == seed]
        if len(of_one_start(of_seed, plan)) == len(plan.arms):
            continue
        made = {each.arm for each in of_seed if each.start == start}
        wanted += [Run(arm=arm, seed=seed) for arm in plan.arms if arm not in made]
    return wanted


def check_none_is_lost(
    file: Path, outcomes: Mapping[str, Sequence[Outcome]], plan: ForgetfulPlan
) -> None:
    """A report over a file must have every run of the plan that the file has, of any start.

    Raises:
        StudyError: one would be lost.
    """
    kept = {_key(each) for found in outcomes.values() for each in found}
    lost = [row for row in _rows(file, plan) if _key(row) not in kept]
    if lost:
        first = lost[0]
        raise StudyError(
            f"{file} has {len(lost)} results that are not measured here, such as {first.arm} of "
            f"seed {first.seed} and memory {first.memory}: add --recorded to keep them"
        )
