"""What a checkpoint does on held-out rows, with the project's own diagnostics."""

from __future__ import annotations

from pathlib import Path

from benchmarks.study.arms import Plan
from benchmarks.study.workspace import OTHER_IMAGE, TEST, Run, Workspace

MAX_TOKENS = 192
_ENGINE = ("--dtype", "float32", "--max-model-len", "448", "--kv-cache-gib", "0.25")
_ANSWERS = ("--answer-style", "exact", "--max-tokens", str(MAX_TOKENS))
OTHER_IMAGE_FOLDER = "other-image"


def export(work: Workspace, run: Run, threads: int) -> Path:
    """The run's last checkpoint as a model folder."""
    out = work.folder(run.name) / "model"
    if not out.exists():
        arguments = (str(work.folder(run.name)), "--out", str(out))
        work.command(run.name, "vapo_verl.export", *arguments, threads=threads)
    return out


def measure(work: Workspace, plan: Plan, name: str, model: Path, threads: int) -> None:
    """Answers, claims and attention; forced early answers; answers about another row's image."""
    folder = work.folder(name)
    shared = ("--num-rows", str(plan.num_test_rows), *_ANSWERS, *_ENGINE)
    test, other = str(work.data / TEST), str(work.data / OTHER_IMAGE)
    commands = (
        ("perception", test, "--run", str(folder)),
        ("early-decision", test, "--run", str(folder), *FORCED_ANSWER),
        ("perception", other, "--out", str(folder / "diagnostics" / OTHER_IMAGE_FOLDER)),
    )
    for command, data, *where in commands:
        arguments = (command, str(model), data, *where, *shared)
        work.command(name, "vapo_verl.diagnostics", *arguments, threads=threads)


FORCED_ANSWER = ("--time-up", "", "--answer-start", r"\boxed{", "--answer-tokens", "4")
"""How the small model answers: it was never taught a sentence that says that time is up."""
