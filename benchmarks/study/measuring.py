"""What a checkpoint does on held-out rows, with the project's own diagnostics."""

from __future__ import annotations

from benchmarks.study.arms import Plan
from benchmarks.study.in_one_process import Command, to_argument
from benchmarks.study.workspace import OTHER_IMAGE, TEST, WARM_START, Workspace

MAX_TOKENS = 160
_ENGINE = ("--dtype", "float32", "--max-model-len", "320", "--kv-cache-gib", "0.25")
_ANSWERS = ("--answer-style", "exact", "--max-tokens", str(MAX_TOKENS), "--batch", "128")
OTHER_IMAGE_FOLDER = "other-image"
FORCED_ANSWER = ("--time-up", "", "--answer-start", r"\boxed{", "--answer-tokens", "16")
"""How the small model answers, up to 11 digits and a bracket: it was never taught a sentence that
says that time is up."""


def measure(work: Workspace, plan: Plan, name: str, threads: int) -> None:
    """Answers, claims and attention; forced early answers; answers about another row's image.

    Args:
        name: a run, of which the last checkpoint is exported first; or the warm start.
    """
    folder = work.folder(name)
    model = work.model if name == WARM_START else folder / "model"
    commands = _measurements(work, plan, name, str(model))
    if not model.exists():
        commands.insert(0, ("vapo_verl.export", str(folder), "--out", str(model)))
    folder.mkdir(parents=True, exist_ok=True)
    module = "benchmarks.study.in_one_process"
    work.command(name, module, to_argument(commands), threads=threads)


def _measurements(work: Workspace, plan: Plan, name: str, model: str) -> list[Command]:
    folder = work.folder(name)
    test, other = str(work.data / TEST), str(work.data / OTHER_IMAGE)
    run = ("--run", str(folder))
    to_other = ("--out", str(folder / "diagnostics" / OTHER_IMAGE_FOLDER))
    shared = ("--num-rows", str(plan.num_test_rows), *_ANSWERS, *_ENGINE)
    diagnostics = "vapo_verl.diagnostics"
    return [
        (diagnostics, "perception", model, test, *run, *shared),
        (diagnostics, "early-decision", model, test, *run, *FORCED_ANSWER, *shared),
        (diagnostics, "perception", model, other, *to_other, "--num-cuts", "1", *shared),
    ]
