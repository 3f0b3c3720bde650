"""Measure a checkpoint on held-out rows with the project's evaluation."""

from __future__ import annotations

from benchmarks.study.arms import Plan
from benchmarks.study.data import NUM_VALIDATION_ROWS
from benchmarks.study.in_one_process import Command, to_argument
from benchmarks.study.workspace import OTHER_IMAGE, TEST, VALIDATION, WARM_START, Workspace

MAX_TOKENS = 160
_ENGINE = ("--dtype", "float32", "--max-model-len", "320", "--kv-cache-gib", "0.25")
_ANSWERS = ("--answer-style", "exact", "--max-tokens", str(MAX_TOKENS), "--batch", "128")
OTHER_IMAGE_FOLDER, VALIDATION_FOLDER = "other-image", "validation"
FORCED_ANSWER = ("--time-up", "", "--answer-start", r"\boxed{", "--answer-tokens", "16")
"""How the small model answers, up to 11 digits and a bracket. It was never trained on a time-up
sentence."""


def measure(work: Workspace, plan: Plan, name: str, threads: int) -> None:
    """Measure on test rows: answers, claims, attention, forced answers; answers to other images.

    Args:
        name: a run, whose last checkpoint is exported first; or the warm start.
    """
    folder = work.folder(name)
    test, other = str(work.data / TEST), str(work.data / OTHER_IMAGE)
    run = ("--run", str(folder))
    to_other = ("--out", str(folder / "diagnostics" / OTHER_IMAGE_FOLDER))
    rows = ("--num-rows", str(plan.num_test_rows))
    _measure(
        work,
        name,
        threads,
        ("perception", test, *run, *rows),
        ("early-decision", test, *run, *FORCED_ANSWER, *rows),
        ("perception", other, *to_other, "--num-cuts", "1", *rows),
    )


def measure_on_validation_rows(work: Workspace, name: str, threads: int) -> None:
    """Measure only answers, claims and attention, of a run or the warm start."""
    out = str(work.folder(name) / "diagnostics" / VALIDATION_FOLDER)
    rows = ("--num-rows", str(NUM_VALIDATION_ROWS))
    _measure(work, name, threads, ("perception", str(work.data / VALIDATION), "--out", out, *rows))


def _measure(work: Workspace, name: str, threads: int, *diagnostics: Command) -> None:
    """Run each command, given as its name and arguments, on the checkpoint."""
    folder = work.folder(name)
    model = work.model if name == WARM_START else folder / "model"
    commands: list[Command] = [
        ("vapo_verl.evaluation", command, str(model), *rest, *_ANSWERS, *_ENGINE)
        for command, *rest in diagnostics
    ]
    if not model.exists():
        commands.insert(0, ("vapo_verl.export", str(folder), "--out", str(model)))
    folder.mkdir(parents=True, exist_ok=True)
    module = "benchmarks.study.in_one_process"
    work.command(name, module, to_argument(commands), threads=threads)
