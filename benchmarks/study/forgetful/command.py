"""The parts of plan.md: train the missing runs, and report each part."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.study import figures, page
from benchmarks.study.data import LINES, make_data
from benchmarks.study.forgetful.compared import of_one_start, plotted, read_outcomes
from benchmarks.study.forgetful.control import check_control
from benchmarks.study.forgetful.outcome import Outcome, is_measured
from benchmarks.study.forgetful.plan import PLANS, QUICK, ForgetfulPlan
from benchmarks.study.forgetful.recorded import (
    check_none_is_lost,
    read_recorded,
    runs_to_make,
)
from benchmarks.study.forgetful.starts import (
    STARTS,
    bind_start,
    make_start,
    start_of,
    workspaces,
)
from benchmarks.study.forgetful.tables import tables
from benchmarks.study.measuring import measure
from benchmarks.study.tasks import Task, do_all, trainings
from benchmarks.study.workspace import WARM_START, Run, StudyError, Workspace, runs_of

ONE_RUN = {"quick", "control"}
"""Parts that compare a run with its warm start."""
Works = Mapping[str, Workspace]
"""By strength of forgetting."""


def run(options: argparse.Namespace, root: Path) -> None:
    """Run the parts that `--forgetful` names, or with `--quick` a short form of the control.

    Parts share warm starts and runs; a run of several parts is made once.

    Raises:
        StudyError: a run failed, or the control did not move.
    """
    plans = _plans(options)
    works = {
        memory: work
        for plan in plans.values()
        for memory, work in workspaces(root, plan, options.starts or STARTS).items()
    }
    known = {
        part: read_recorded(page.RESULTS, plan) if options.recorded else []
        for part, plan in plans.items()
    }

    def report_all() -> list[StudyError]:
        """Report every part; returns the errors."""
        errors: list[StudyError] = []
        for part, plan in plans.items():
            try:
                report(works, plan, root, part, options.document, known[part])
            except StudyError as error:
                errors.append(error)
        return errors

    try:
        if not options.report:
            _make(works, plans, known, options.jobs)
    except BaseException:
        for error in report_all():
            print(error, file=sys.stderr)
        raise
    for error in report_all():
        raise error
    for part in plans.keys() & ONE_RUN:
        work = works[plans[part].memories[0]]
        if is_measured(work, runs_of(plans[part])[0].name):
            print(check_control(work, plans[part]))


def _plans(options: argparse.Namespace) -> dict[str, ForgetfulPlan]:
    """Part -> plan, in the order of the command line."""
    if options.quick:
        return {"quick": QUICK}
    return {part: PLANS[part].chosen(options.arms, options.seeds) for part in options.forgetful}


def _make(
    works: Works,
    plans: Mapping[str, ForgetfulPlan],
    known: Mapping[str, Sequence[Outcome]],
    jobs: int,
) -> None:
    """Make warm starts, then runs: of each strength the first seed of all parts, then the next."""
    any_plan = next(iter(plans.values()))  # all have the same size

    def to_make(start: Callable[[str], str | None]) -> list[tuple[str, Run]]:
        """Strength and run, once each."""
        found = [
            (memory, each)
            for part, plan in plans.items()
            for memory in plan.memories
            for each in runs_to_make(plan, memory, known[part], start(memory))
        ]
        strengths = list(dict.fromkeys(memory for memory, _ in found))
        return sorted(
            dict.fromkeys(found), key=lambda each: (strengths.index(each[0]), each[1].seed)
        )

    begun = {memory: works[memory] for memory, _ in to_make(lambda _: None)}
    for work in begun.values():
        work.claim(any_plan)
        make_data(work, any_plan, LINES)
    starts = [
        (f"{WARM_START} {memory}", partial(_make_start, work, any_plan, memory))
        for memory, work in begun.items()
    ]
    do_all(starts, jobs)
    runs: list[Task] = []
    for memory, each in to_make(lambda memory: start_of(works[memory])):
        measured = partial(measure, works[memory], any_plan)
        [(name, task)] = trainings(works[memory], any_plan, [each], measured)
        runs.append((f"{name} {memory}", task))
    do_all(runs, jobs)


def _make_start(work: Workspace, plan: ForgetfulPlan, memory: str, threads: int) -> None:
    """Train and measure the warm start of a strength."""
    make_start(work, plan, memory, threads)
    bind_start(work)
    measure(work, plan, WARM_START, threads)


def report(
    works: Works,
    plan: ForgetfulPlan,
    root: Path,
    part: str,
    document: bool,
    known: Sequence[Outcome] = (),
) -> None:
    """Write tables, CSV and plots of all measured runs; with `document`, into docs/study.md.

    Args:
        part: name of the files, of the plots' folder, and of the tables' place in the document.
        known: results of runs that are not measured here.

    Raises:
        StudyError: the document has results that this report lacks.
    """
    outcomes = read_outcomes(works, plan, known)
    text = tables(outcomes, plan)
    print(text)
    out = page.RESULTS if document else root / "results"
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{part}.csv"
    if document:
        check_none_is_lost(file, outcomes, plan)
    if rows := [outcome for found in outcomes.values() for outcome in found]:
        figures.write_csv(file, rows)
    for memory, found in outcomes.items():
        compared = of_one_start(found, plan)
        if in_plots := plotted(works[memory], plan, compared):
            pictures = out / f"{part}_{memory}"
            pictures.mkdir(exist_ok=True)
            page.write_plots(works[memory], in_plots, pictures)
    if document:
        page.write_tables(page.DOCUMENT, part, text)
    print(f"\nCSV file and plots: {out}")
