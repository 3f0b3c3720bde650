"""Command line: python -m benchmarks.study [--quick | --variants | --forgetful] [--out DIR]."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.study import arms, figures, page, variants
from benchmarks.study.arms import ARMS, BASELINE, Plan
from benchmarks.study.claims import read_claim_kinds
from benchmarks.study.credit import read_credit
from benchmarks.study.data import make_data
from benchmarks.study.forgetful import command as forgetful_command
from benchmarks.study.forgetful.plan import PLANS
from benchmarks.study.measuring import measure, measure_on_validation_rows
from benchmarks.study.statistics import compare
from benchmarks.study.tasks import Task, do_all, trainings
from benchmarks.study.workspace import NO_SEED, WARM_START, StudyError, Workspace, runs_of

RUNS_CSV, ROWS_CSV, CREDIT_CSV = "runs.csv", "rows.csv", "credit.csv"
CLAIMS_CSV, VARIANTS_CSV = "claims.csv", "variants.csv"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the missing stages; returns 1 if a run failed (the others are finished first), and 130
    after Ctrl-C."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.forgetful == []:
        options.forgetful = ["comparison"]
    if fault := _fault(options):
        parser.error(fault)
    options.jobs = options.jobs or (1 if options.quick else 2)
    start = time.monotonic()
    try:
        if options.quick or options.forgetful:
            name = "study_quick" if options.quick else "study_forgetful"
            forgetful_command.run(options, _root(options, name))
        else:
            plan = arms.FULL.chosen(options.arms, options.seeds)
            work = Workspace(root=_root(options, "study"))
            work.claim(plan)
            make_data(work, plan)
            (_variants if options.variants else _arms)(work, plan, options)
    except StudyError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    print(f"done in {(time.monotonic() - start) / 60:.0f} min")
    return 0


def _fault(options: argparse.Namespace) -> str | None:
    """The first impossible combination of options; None if there is none."""
    partial_study = bool(options.quick or options.arms or options.seeds)
    chosen = options.arms or ()
    parts = options.forgetful or ()
    known = [arm for part in parts for arm in PLANS[part].arms] or [*ARMS]
    if unknown := [arm for arm in chosen if arm not in known]:
        return f"--arms {' '.join(unknown)}: choose from {', '.join(dict.fromkeys(known))}"
    seeds = options.seeds or ()
    if any(not 0 <= seed < 2**31 for seed in seeds) or len({*seeds}) < len(seeds):
        given = " ".join(map(str, seeds))
        return f"--seeds {given}: give different numbers of 0 to {2**31 - 1}"
    if options.quick and (options.arms or options.seeds):
        return "--quick is the control with one seed: leave --arms and --seeds out"
    if options.arms and BASELINE in known and BASELINE not in options.arms:
        return f"--arms {' '.join(options.arms)}: add {BASELINE}, the arm of comparison"
    if options.report and not options.forgetful:
        return "--report is for --forgetful: other studies are reported only when all runs are done"
    for name in ("recorded", "starts"):
        if getattr(options, name) and not options.forgetful:
            return f"--{name} is for --forgetful: the other studies have their own warm start"
    if options.variants and (options.arms or options.seeds):
        return "--variants has its own arms and seed: leave --arms and --seeds out"
    if options.document and partial_study:
        return "--document is for the full study: leave --quick, --arms and --seeds out"
    return None


def _root(options: argparse.Namespace, name: str) -> Path:
    return (options.out or page.REPOSITORY / "runs" / name).resolve()


def _arms(work: Workspace, plan: Plan, options: argparse.Namespace) -> None:
    on_test_rows = partial(measure, work, plan)
    start: Task = (WARM_START, partial(on_test_rows, WARM_START))
    do_all([start, *trainings(work, plan, runs_of(plan), on_test_rows)], options.jobs)
    report_arms(work, plan, options.document)


def _variants(work: Workspace, plan: Plan, options: argparse.Namespace) -> None:
    measured = partial(measure_on_validation_rows, work)
    do_all(trainings(work, plan, variants.all_runs(), measured), options.jobs)
    report_variants(work, options.document)


def report_arms(work: Workspace, plan: Plan, document: bool) -> None:
    """Write tables and figures of the arms; with `document`, into docs/study.md too."""
    runs = runs_of(plan)
    of_runs = [figures.read_figures(work, run.name, run.arm, run.seed) for run in runs]
    of_runs.insert(0, figures.read_figures(work, WARM_START, WARM_START, NO_SEED))
    kinds = [read_claim_kinds(work, run.name, run.arm, run.seed) for run in runs]
    kinds.insert(0, read_claim_kinds(work, WARM_START, WARM_START, NO_SEED))
    outcomes = [item for run in runs for item in figures.read_outcomes(work, run)]
    learnt_from = [read_credit(work, run) for run in runs]
    comparisons = compare(of_runs, outcomes, runs)
    text = "\n\n".join(
        (
            page.figures_table(of_runs),
            page.comparison_table(comparisons),
            page.kinds_table(kinds),
            page.credit_table(learnt_from),
        )
    )
    print(text)
    out = _results(work, document)
    committed = _committed(plan)
    figures.write_csv(out / RUNS_CSV, of_runs)
    if committed:
        ours = figures.read_csv(out / RUNS_CSV, figures.Figures)  # rounded like the committed ones
        print(f"\nAgainst {page.RESULTS / RUNS_CSV}:\n{page.agreement(ours, committed)}")
    figures.write_csv(out / ROWS_CSV, outcomes)
    figures.write_csv(out / CLAIMS_CSV, kinds)
    figures.write_csv(out / CREDIT_CSV, learnt_from)
    page.write_plots(work, plan, out)
    if document:
        page.write_tables(page.DOCUMENT, page.FIGURES, text)
    print(f"\nCSV files and plots: {out}")


def _results(work: Workspace, document: bool) -> Path:
    """Create and return the folder for the results."""
    out = page.RESULTS if document else work.root / "results"
    out.mkdir(parents=True, exist_ok=True)
    return out


def _committed(plan: Plan) -> list[figures.Figures]:
    """Earlier figures of a study of the same size; empty if there are none."""
    as_large = replace(plan, arms=arms.FULL.arms, seeds=arms.FULL.seeds) == arms.FULL
    file = page.RESULTS / RUNS_CSV
    return figures.read_csv(file, figures.Figures) if as_large and file.exists() else []


def report_variants(work: Workspace, document: bool) -> None:
    """Write the table of the variants; with `document`, into docs/study.md too."""
    rows = [variants.read_variant(work, run) for run in variants.all_runs()]
    differences = variants.compare_variants(work)
    text = f"{page.variants_table(rows)}\n\n{page.variants_comparison_table(differences)}"
    print(text)
    out = _results(work, document)
    figures.write_csv(out / VARIANTS_CSV, rows)
    if document:
        page.write_tables(page.DOCUMENT, page.VARIANTS, text)
    print(f"\nCSV file: {out / VARIANTS_CSV}")


def build_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=main.__doc__)
    add = parser.add_argument
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_true", help="only the control, 1 seed, few steps: a test"
    )
    size.add_argument(
        "--forgetful",
        nargs="*",
        choices=tuple(PLANS),
        metavar="PART",
        help="in the world forgetful_digits, hours each: `comparison` (the default), its "
        "`control`, what makes the `signal`, and methods of other papers, `neighbours`; see "
        "plan.md",
    )
    size.add_argument(
        "--variants", action="store_true", help="VAPO with other settings, next to the study's runs"
    )
    add("--out", type=Path, help="folder of the study (runs/study, runs/study_quick)")
    add(
        "--jobs",
        type=int,
        choices=(1, 2),
        help="runs at once (2; 1 with --quick), the same for all of a study: a single job has two "
        "threads, which sum in another order",
    )
    add("--arms", nargs="+", help="only these arms, grpo included, in another --out")
    add("--seeds", nargs="+", type=int, help="other seeds than the study's, in another --out")
    add("--report", action="store_true", help="with --forgetful: only report; start nothing")
    add(
        "--starts",
        type=Path,
        help="with --forgetful: folder of warm starts, one subfolder per strength; missing ones "
        "are made (benchmarks/study/starts)",
    )
    add(
        "--recorded",
        action="store_true",
        help="with --forgetful: take runs from docs/study/*.csv, and make only the rest",
    )
    add("--document", action="store_true", help="put the results into docs/study.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
