"""Command line: python -m benchmarks.study [--quick] [--out DIR]."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from benchmarks.study import arms, figures, page
from benchmarks.study.arms import Plan
from benchmarks.study.credit import read_credit
from benchmarks.study.data import make_data
from benchmarks.study.measuring import measure
from benchmarks.study.statistics import compare
from benchmarks.study.training import train
from benchmarks.study.workspace import WARM_START, Run, StudyError, Workspace

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = REPOSITORY / "docs" / "study.md"
RESULTS = REPOSITORY / "docs" / "study"
RUNS_CSV, ROWS_CSV, CREDIT_CSV = "runs.csv", "rows.csv", "credit.csv"
NO_SEED = -1
"""Of the warm start."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is not done yet; returns 1 when a run failed, the others having been finished."""
    options = _parser().parse_args(arguments)
    plan = arms.QUICK if options.quick else arms.FULL
    name = "study_quick" if options.quick else "study"
    work = Workspace(root=(options.out or REPOSITORY / "runs" / name).resolve())
    start = time.monotonic()
    try:
        work.claim(plan)
        make_data(work, plan)
        failures = _do_all(work, plan, options.jobs)
    except StudyError as error:
        print(error, file=sys.stderr)
        return 1
    for failure in failures:
        print(failure, file=sys.stderr)
    if failures:
        return 1
    _report(work, plan, options.document)
    print(f"done in {(time.monotonic() - start) / 60:.0f} min")
    return 0


def _do_all(work: Workspace, plan: Plan, jobs: int) -> list[BaseException]:
    """Train and measure every run, `jobs` at a time; what failed."""
    threads = max(2 // jobs, 1)
    runs = all_runs(plan)
    tasks: list[tuple[str, Callable[[], None]]] = [
        (WARM_START, lambda: measure(work, plan, WARM_START, threads)),
        *((run.name, _task(work, plan, run, threads)) for run in runs),
    ]
    failures: list[BaseException] = []
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        names = {pool.submit(task): name for name, task in tasks}
        for number, future in enumerate(as_completed(names), start=1):
            error = future.exception()
            print(f"{number}/{len(tasks)} {names[future]}: {error or 'done'}", flush=True)
            if error is not None:
                failures.append(error)
    return failures


def _task(work: Workspace, plan: Plan, run: Run, threads: int) -> Callable[[], None]:
    def task() -> None:
        train(work, plan, run, threads)
        measure(work, plan, run.name, threads)

    return task


def all_runs(plan: Plan) -> list[Run]:
    """Seed by seed, so that a study cut short still has pairs."""
    return [Run(arm=arm, seed=seed) for seed in plan.seeds for arm in plan.arms]


def _report(work: Workspace, plan: Plan, document: bool) -> None:
    runs = all_runs(plan)
    of_runs = [figures.read_figures(work, run.name, run.arm, run.seed) for run in runs]
    of_runs.insert(0, figures.read_figures(work, WARM_START, WARM_START, NO_SEED))
    outcomes = [item for run in runs for item in figures.read_outcomes(work, run)]
    learnt_from = [read_credit(work, run) for run in runs]
    comparisons = compare(of_runs, outcomes, runs)
    text = "\n\n".join(
        (
            page.figures_table(of_runs),
            page.comparison_table(comparisons),
            page.credit_table(learnt_from),
        )
    )
    print(text)
    out = RESULTS if document else work.root / "results"
    if plan == arms.FULL and (RESULTS / RUNS_CSV).exists():
        committed = figures.read_csv(RESULTS / RUNS_CSV)
        print(f"\nAgainst {RESULTS / RUNS_CSV}:\n{page.agreement(of_runs, committed)}")
    out.mkdir(parents=True, exist_ok=True)
    figures.write_csv(out / RUNS_CSV, of_runs)
    figures.write_csv(out / ROWS_CSV, outcomes)
    figures.write_csv(out / CREDIT_CSV, learnt_from)
    page.write_plots(work, plan, out)
    if document:
        page.write_tables(DOCUMENT, text)
    print(f"\nCSV files and plots: {out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=main.__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="2 arms, 1 seed, fewer steps: does it work?")
    add("--out", type=Path, help="folder of the study (runs/study, runs/study_quick)")
    add("--jobs", type=int, default=2, choices=(1, 2), help="runs at once (%(default)s)")
    add("--document", action="store_true", help="put the results into docs/study.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
