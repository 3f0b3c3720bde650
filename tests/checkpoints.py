"""Checkpoints without a trainer."""

from pathlib import Path

from vapo_verl.run_folder.checkpoints import checkpoint_folder, declare_complete, file_records


def mark_complete(run_dir: Path, step: int) -> None:
    """Declare a checkpoint complete whose files a test has written."""
    declare_complete(run_dir, step, file_records(checkpoint_folder(run_dir, step)))
