"""Selects the runs that are compared, and those that are plotted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.study.forgetful.outcome import Outcome, is_measured, read_outcome
from benchmarks.study.forgetful.plan import ForgetfulPlan
from benchmarks.study.forgetful.starts import UNRECORDED
from benchmarks.study.workspace import NO_SEED, WARM_START, Run, Workspace, runs_of


def read_outcomes(
    works: Mapping[str, Workspace], plan: ForgetfulPlan, recorded: Sequence[Outcome] = ()
) -> dict[str, list[Outcome]]:
    """Strength -> outcomes of all measured checkpoints, of any warm start; warm starts come first.

    Args:
        recorded: results of other machines, used for checkpoints that are not measured here.
    """
    found: dict[str, list[Outcome]] = {}
    for memory in plan.memories:
        work = works[memory]
        names = [(WARM_START, WARM_START, NO_SEED)]
        names += [(run.name, run.arm, run.seed) for run in runs_of(plan)]
        here = [
            read_outcome(work, memory, name, arm, seed)
            for name, arm, seed in names
            if is_measured(work, name)
        ]
        elsewhere = [each for each in recorded if each.memory == memory]
        once: dict[tuple[str, str, int], Outcome] = {}
        for each in (*here, *elsewhere):
            once.setdefault((each.start, each.arm, each.seed), each)
        firsts = [each for each in once.values() if each.arm == WARM_START]
        runs = [each for each in once.values() if each.arm != WARM_START]
        runs.sort(key=lambda each: (each.seed, each.start, plan.arms.index(each.arm)))
        found[memory] = [*firsts, *runs]
    return found


def of_one_start(outcomes: Sequence[Outcome], plan: ForgetfulPlan) -> list[Outcome]:
    """The compared runs: for every seed, those of the warm start with the most runs.

    A start that was not kept counts only where no other has runs: nobody can repeat its runs. The
    warm starts of the runs come first. Seeds with only arms of another part are left out, unless
    there are no others.

    Args:
        outcomes: outcomes of one strength; of warm starts with equally many runs the first counts.
    """
    starts = dict.fromkeys(each.start for each in outcomes)
    by_seed: list[list[Outcome]] = []
    for seed in plan.seeds:
        of_seed = [each for each in outcomes if each.seed == seed]
        by_start = ([each for each in of_seed if each.start == start] for start in starts)
        by_seed.append(max(by_start, key=_rank, default=[]))
    tested = [runs for runs in by_seed if {each.arm for each in runs} & {*plan.tested}]
    runs = [each for of_seed in tested or by_seed for each in of_seed]
    used = {each.start for each in runs or outcomes}
    firsts = [each for each in outcomes if each.arm == WARM_START and each.start in used]
    return [*firsts, *runs]


def _rank(of_a_start: Sequence[Outcome]) -> tuple[bool, int]:
    return bool(of_a_start) and of_a_start[0].start != UNRECORDED, len(of_a_start)


def of_other_starts(outcomes: Sequence[Outcome], plan: ForgetfulPlan) -> dict[str, list[Outcome]]:
    """Warm start -> its runs that :func:`of_one_start` leaves out."""
    compared = of_one_start(outcomes, plan)
    others: dict[str, list[Outcome]] = {}
    for each in outcomes:
        if each.arm != WARM_START and each not in compared:
            others.setdefault(each.start, []).append(each)
    return others


def plotted(
    work: Workspace, plan: ForgetfulPlan, reported: Sequence[Outcome]
) -> ForgetfulPlan | None:
    """The arms with a run measured in this folder, and the seeds for which all these arms are.

    Args:
        reported: the runs compared at this strength. An arm with some runs from elsewhere cannot
            be plotted with all its seeds.

    Returns:
        None if there is nothing to plot: fewer than two arms, no such seed, no warm start (a line
        of the plots), or an arm that is measured both here and elsewhere.
    """
    here = {run for run in runs_of(plan) if is_measured(work, run.name)}
    arms_here = tuple(arm for arm in plan.arms if arm in {run.arm for run in here})
    complete = tuple(
        seed
        for seed in plan.seeds
        if here and all(Run(arm=arm, seed=seed) in here for arm in arms_here)
    )
    elsewhere = {each.arm for each in reported if Run(arm=each.arm, seed=each.seed) not in here}
    is_whole = complete and is_measured(work, WARM_START) and not elsewhere & {*arms_here}
    if not is_whole or len(arms_here) < 2:
        return None
    return replace(plan, arms=arms_here, seeds=complete)
