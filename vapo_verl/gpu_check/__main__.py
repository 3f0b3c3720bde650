"""Command line: python -m vapo_verl.gpu_check [--stages NAME ...] [--minutes N] [--out DIR]

Exit code 0: all that ran passed. 1: something failed. 2: no CUDA device, or bad usage. 128 + n:
stopped by signal n, with the results so far.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from vapo_verl.cli_options import user_path
from vapo_verl.gpu_check.runner import (
    DEFAULT_MINUTES,
    STAGES,
    Stage,
    allot,
    for_rehearsal,
    select_stages,
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        stages = select_stages(options.stages)
    except ValueError as problem:
        parser.error(str(problem))
    if options.minutes <= 0:
        parser.error(f"--minutes {options.minutes:g} is too small; give minutes above 0")
    if options.device == "cpu":
        stages = for_rehearsal(stages)
    if options.dry_run:
        print(plan(stages, options.minutes))
        return 0
    return run(stages, options)


def run(stages: Sequence[Stage], options: argparse.Namespace) -> int:
    from vapo_verl.gpu_check.results import markdown
    from vapo_verl.gpu_check.runner import machine_facts, run_check, stage_command

    try:
        machine = machine_facts()
    except RuntimeError as problem:
        return fail(str(problem))
    if options.device == "cuda" and not machine["gpus"]:
        return fail(
            "torch sees no CUDA device here: run this on a machine with a GPU, in an environment "
            "of `make setup EXTRA=gpu` (--device cpu rehearses the stages without one)"
        )
    result = run_check(
        stages,
        minutes=options.minutes,
        out=options.out,
        machine=machine,
        command=stage_command(options.device),
        say=lambda line: print(line, flush=True),
    )
    print(f"\n{markdown(result)}\nresults: {options.out / 'results.json'}, results.md, *.log")
    if result.stopped:
        return 128 + signal.Signals[result.stopped]
    return int(not result.passed)


def fail(message: str) -> int:
    print(f"vapo_verl.gpu_check: {message}", file=sys.stderr)
    return 2


def plan(stages: Sequence[Stage], minutes: float) -> str:
    """The stages with their limits under a budget of minutes, and what each needs."""
    given = allot(stages, 60 * minutes)
    lines = [f"{minutes:g} minutes", f"{'stage':14}{'limit':>7}  what; needs"]
    for stage in stages:
        limit = f"{given[stage.name]} s" if given[stage.name] else "no time"
        lines.append(f"{stage.name:14}{limit:>7}  {stage.what}; torch, {stage.needs}")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m vapo_verl.gpu_check",
        description="Check vapo_verl on this machine's GPU. No download: models are random. "
        "docs/gpu.md tells how to read the table.",
        epilog="Exit code 0: all that ran passed, 1: something failed, 2: no CUDA device or bad "
        "usage.",
    )
    parser.add_argument(
        "--stages",
        nargs="+",
        metavar="NAME",
        help=f"only these: {' '.join(stage.name for stage in STAGES)}",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=DEFAULT_MINUTES,
        help="for the complete check, the most informative cases first (default %(default)g)",
    )
    parser.add_argument(
        "--out",
        type=user_path,
        default=Path("runs/gpu_check"),
        help="folder of results.json, results.md and a log per stage (default %(default)s)",
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu: rehearse the stages with small sizes; says nothing about a GPU",
    )
    parser.add_argument("--dry-run", action="store_true", help="list stages, limits and needs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
