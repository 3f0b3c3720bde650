"""The tasks of a study, two at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial

from benchmarks.study.arms import Plan
from benchmarks.study.training import train
from benchmarks.study.workspace import Run, StudyError, Workspace

Task = tuple[str, Callable[[int], None]]
"""A name, and a function of the number of threads."""


def trainings(
    work: Workspace, plan: Plan, runs: Sequence[Run], measured: Callable[[str, int], None]
) -> list[Task]:
    """Tasks that train each run, and measure it by its name with as many threads."""

    def task(run: Run, threads: int) -> None:
        train(work, plan, run, threads)
        measured(run.name, threads)

    return [(run.name, partial(task, run)) for run in runs]


def do_all(tasks: Sequence[Task], jobs: int) -> None:
    """Run all tasks, `jobs` at a time; a single job has both cores.

    Raises:
        StudyError: some tasks failed, as listed; the others have finished.
    """
    failures: list[str] = []
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        names = {pool.submit(do, 2 // jobs): name for name, do in tasks}
        try:
            for number, future in enumerate(as_completed(names), start=1):
                error = future.exception()
                print(f"{number}/{len(tasks)} {names[future]}: {error or 'done'}", flush=True)
                if error is not None:
                    failures.append(str(error))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)  # running tasks got Ctrl-C, too
            raise
    if failures:
        raise StudyError("\n".join(failures))
