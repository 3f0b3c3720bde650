"""Warm starts, and the folders of the runs that begin with them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from benchmarks.study.forgetful.plan import ForgetfulPlan
from benchmarks.study.workspace import WARM_START, StudyError, Workspace

WEIGHTS, START_FILE, UNRECORDED = "model.safetensors", "start.txt", "unrecorded"
STARTS = Path(__file__).parents[1] / "starts"
"""The warm starts of the plan, one folder for each strength."""


def workspaces(root: Path, plan: ForgetfulPlan, starts: Path) -> dict[str, Workspace]:
    """Strength -> workspace.

    Args:
        starts: folder of the warm starts, each in a subfolder named by its strength.
    """
    return {
        memory: Workspace(root=root / f"memory_{memory}", start=starts / memory)
        for memory in plan.memories
    }


def bind_start(work: Workspace) -> None:
    """Assign the folder to its warm start, by the first 8 digits of the SHA-256 of its weights.

    Different CPUs round differently, so the same training can give different weights.

    Raises:
        StudyError: the folder's runs began with another warm start.
    """
    file, text = work.root / START_FILE, (work.model / WEIGHTS).read_bytes()
    digest = hashlib.sha256(text).hexdigest()[:8]
    if not file.exists():
        file.write_text(digest)
    elif start_of(work) != digest:
        raise StudyError(
            f"{work.root} holds runs of the warm start {start_of(work)}, and {work.model} is "
            f"{digest}; give the first one by --starts, or another --out"
        )


def start_of(work: Workspace) -> str:
    """Digest of the warm start of a folder's runs; `unrecorded` if no file has it."""
    file = work.root / START_FILE
    return file.read_text() if file.exists() else UNRECORDED


def make_start(work: Workspace, plan: ForgetfulPlan, memory: str, threads: int) -> None:
    """Make the warm start of one strength; a finished one is kept."""
    assert work.start is not None
    work.command(
        f"{WARM_START}_{memory}",
        "vapo_verl.digits.model",
        "warm-start",
        *("--memory", memory),
        *("--steps", str(plan.start_steps)),
        *("--threads", str(threads)),
        *("--out", str(work.start)),
        threads=threads,
    )
