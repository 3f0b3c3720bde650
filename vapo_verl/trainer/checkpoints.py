"""Which checkpoints of a run folder are whole.

A checkpoint ``global_step_N`` is whole once ``complete.json`` stands in it, written after all its
files. veRL's pointer ``latest_checkpointed_iteration.txt`` is replaced in one step and only ever
names a whole checkpoint, so a process killed at any moment leaves the older one usable.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

MARKER = "complete.json"
POINTER = "latest_checkpointed_iteration.txt"
_FOLDER = re.compile(r"global_step_(\d+)")


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    return run_dir / f"global_step_{step}"


def latest_complete(run_dir: Path) -> int | None:
    """Step of the newest whole checkpoint; None when there is none."""
    steps = [step for step in _steps(run_dir) if _is_complete(run_dir, step)]
    return max(steps, default=None)


def incomplete(run_dir: Path) -> list[Path]:
    """Folders that a killed process left half written, oldest first."""
    steps = sorted(step for step in _steps(run_dir) if not _is_complete(run_dir, step))
    return [checkpoint_folder(run_dir, step) for step in steps]


def discard_incomplete(run_dir: Path, step: int) -> None:
    """Remove a half-written checkpoint of ``step`` before the same step is saved anew."""
    if not _is_complete(run_dir, step):
        shutil.rmtree(checkpoint_folder(run_dir, step), ignore_errors=True)


def mark_complete(run_dir: Path, step: int) -> None:
    """Declare the checkpoint of ``step`` whole, then point to it."""
    write_atomically(checkpoint_folder(run_dir, step) / MARKER, json.dumps({"step": step}))
    point_to(run_dir, step)


def point_to(run_dir: Path, step: int | None) -> None:
    """Make veRL resume from ``step``, or from scratch when it is None."""
    if step is None:
        (run_dir / POINTER).unlink(missing_ok=True)
    else:
        write_atomically(run_dir / POINTER, str(step))


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` so that a reader, or a crash, sees the old text or the new one."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


def _steps(run_dir: Path) -> list[int]:
    names = (path.name for path in run_dir.glob("global_step_*") if path.is_dir())
    return [int(match[1]) for name in names if (match := _FOLDER.fullmatch(name))]


def _is_complete(run_dir: Path, step: int) -> bool:
    return (checkpoint_folder(run_dir, step) / MARKER).is_file()
