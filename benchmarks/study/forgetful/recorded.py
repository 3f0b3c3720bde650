"""Earlier runs, or runs of another machine, from the CSV files of docs/study.

These files have a run's results but not its files, so such a run is compared but not plotted. Runs
are compared only with runs of the same seed and warm start.
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
    """Checkpoints of a plan in the files of all parts, once each: parts share runs."""
    found: dict[tuple[str, str, str, int], Outcome] = {}
    for part in PLANS:
        for row in _rows(folder / f"{part}.csv", plan):
            found.setdefault(_key(row), row)
    return list(found.values())


def _key(row: Outcome) -> tuple[str, str, str, int]:
    """Key of a run or a warm start."""
    return row.memory, row.start, row.arm, row.seed


def _rows(file: Path, plan: ForgetfulPlan) -> list[Outcome]:
    """Rows of a plan's runs and warm starts."""
    wanted = {(run.arm, run.seed) for run in runs_of(plan)} | {(WARM_START, NO_SEED)}
    rows = read_csv(file, Outcome) if file.exists() else []
    return [row for row in rows if row.memory in plan.memories and (row.arm, row.seed) in wanted]


def runs_to_make(
    plan: ForgetfulPlan, memory: str, recorded: Iterable[Outcome], start: str | None
) -> list[Run]:
    """Runs of the plan that have to be made, in its order.

    A seed is done if all its runs are recorded with one warm start. For other seeds, only runs
    recorded with this machine's warm start are done.

    Args:
        start: digest of this machine's warm start (`start_of`); None if it is not made yet.
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
    """Check that a report contains every run of the plan in the file that it replaces.

    Raises:
        StudyError: a run would be lost.
    """
    kept = {_key(each) for found in outcomes.values() for each in found}
    lost = [row for row in _rows(file, plan) if _key(row) not in kept]
    if lost:
        first = lost[0]
        raise StudyError(
            f"{file} has {len(lost)} results that are not measured here, such as {first.arm} of "
            f"seed {first.seed} and memory {first.memory}: add --recorded to keep them"
        )
