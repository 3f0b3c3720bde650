"""Which checkpoints of a run folder are whole.

A checkpoint ``global_step_N`` is whole once ``complete.json`` stands in it, written after all its
files are on the disk. A run resumes from the newest whole one, and so does veRL's pointer
``latest_checkpointed_iteration.txt``: a process killed at any moment leaves the older one usable.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vapo_verl.files import atomic_write_text, sync_folder

MARKER = "complete.json"
POINTER = "latest_checkpointed_iteration.txt"
_FOLDER = re.compile(r"global_step_(\d+)")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the message says where, what stands, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    return run_dir / f"global_step_{step}"


def latest_complete(run_dir: Path) -> int | None:
    """Step of the newest whole checkpoint; None when there is none."""
    return max(complete_steps(run_dir), default=None)


def complete_steps(run_dir: Path) -> list[int]:
    """Steps of all whole checkpoints, oldest first."""
    return sorted(step for step in _steps(run_dir) if _is_complete(run_dir, step))


def incomplete(run_dir: Path) -> list[Path]:
    """Folders that a killed process left half written, oldest first."""
    steps = sorted(step for step in _steps(run_dir) if not _is_complete(run_dir, step))
    return [checkpoint_folder(run_dir, step) for step in steps]


def discard_incomplete(run_dir: Path, step: int) -> None:
    """Remove a half-written checkpoint of ``step`` before the same step is saved anew."""
    if not _is_complete(run_dir, step):
        shutil.rmtree(checkpoint_folder(run_dir, step), ignore_errors=True)


def mark_complete(run_dir: Path, step: int) -> None:
    """Bring the checkpoint of ``step`` to the disk, declare it whole, then point to it."""
    folder = checkpoint_folder(run_dir, step)
    for path in folder.rglob("*"):
        _sync(path)
    atomic_write_text(folder / MARKER, json.dumps({"step": step}))
    sync_folder(folder)
    sync_folder(run_dir)  # the name of a new folder is an entry of the one above it
    point_to(run_dir, step)


@contextmanager
def saving(run_dir: Path, step: int, keep: int | None = None) -> Iterator[None]:
    """Save the checkpoint of ``step`` within: it is whole afterwards, or nothing of it is left.

    Old checkpoints go first, to make room, but the newest only once this one is whole.

    Args:
        keep: whole checkpoints to leave, this one among them; all, where it is None.

    Raises:
        CheckpointError: it could not be written; older checkpoints are as they were.
    """
    discard_incomplete(run_dir, step)
    if keep != 1:
        remove_old(run_dir, step, keep)
    try:
        yield
        mark_complete(run_dir, step)
    except (OSError, RuntimeError) as error:  # torch.save has RuntimeError for a full disk
        free = shutil.disk_usage(run_dir).free / 2**30
        discard_incomplete(run_dir, step)
        newest = latest_complete(run_dir)
        with suppress(OSError):
            point_to(run_dir, newest)
        reason = str(getattr(error, "cause", error)).partition("\n")[0]  # not Ray's traceback
        kept = "There is no older one" if newest is None else f"That of step {newest} is whole"
        raise CheckpointError(
            f"could not write the checkpoint {checkpoint_folder(run_dir, step)}: {reason} "
            f"(free space there: {free:.2f} GiB). {kept}. If the disk is full, free some space or "
            "keep fewer checkpoints (trainer.max_actor_ckpt_to_keep=1); the same command resumes."
        ) from error
    remove_old(run_dir, step, keep)


def remove_old(run_dir: Path, step: int, keep: int | None) -> None:
    """Leave ``keep`` whole checkpoints, that of ``step`` and those before it, and no remains.

    Does nothing where ``keep`` is None or no positive number.
    """
    if keep is None or keep < 1:
        return
    older = {other for other in _steps(run_dir) if other < step}
    whole = [other for other in complete_steps(run_dir) if other < step]
    for other in older - set(whole[::-1][: keep - 1]):
        folder = checkpoint_folder(run_dir, other)
        (folder / MARKER).unlink(missing_ok=True)  # first: a kill from here on leaves remains only
        shutil.rmtree(folder, ignore_errors=True)


def point_to(run_dir: Path, step: int | None) -> None:
    """Make veRL resume from ``step``, or from scratch when it is None."""
    if step is None:
        (run_dir / POINTER).unlink(missing_ok=True)
    else:
        atomic_write_text(run_dir / POINTER, str(step))


def _sync(path: Path) -> None:
    if path.is_dir():
        sync_folder(path)
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _steps(run_dir: Path) -> list[int]:
    names = (path.name for path in run_dir.glob("global_step_*") if path.is_dir())
    return [int(match[1]) for name in names if (match := _FOLDER.fullmatch(name))]


def _is_complete(run_dir: Path, step: int) -> bool:
    return (checkpoint_folder(run_dir, step) / MARKER).is_file()
