"""From a run folder to a model folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vapo_verl.export.card import write_card
from vapo_verl.export.errors import ExportError
from vapo_verl.export.source import find_checkpoint
from vapo_verl.export.weights import write_model


def write_model_folder(run_dir: Path, step: int | None = None, out: Path | None = None) -> Path:
    """Write a checkpoint as a Hugging Face folder; its path.

    Args:
        run_dir: a run's ``trainer.default_local_dir``.
        step: which checkpoint; the newest whole one by default.
        out: the folder to make; ``RUN_DIR/model_step_N`` by default.

    Raises:
        ExportError: no such checkpoint, or ``out`` exists already.
        OSError: ``out`` cannot be written.
    """
    checkpoint = find_checkpoint(run_dir, step)
    out = out or run_dir / f"model_step_{checkpoint.step}"
    if out.exists():
        raise ExportError(f"{out} exists already; remove it, or name another place with --out")
    with folder_written_whole(out) as temporary:
        write_card(run_dir, checkpoint.step, temporary)
        write_model(checkpoint.folder, temporary)
    return out


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill; it becomes ``folder`` on success, and is gone after any error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
