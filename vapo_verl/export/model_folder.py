"""Convert a checkpoint in a run folder to a model folder."""

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from vapo_verl.export.card import write_card
from vapo_verl.export.source import ExportError, find_checkpoint
from vapo_verl.files import atomic_folder


def write_model_folder(run_dir: Path, step: int | None = None, out: Path | None = None) -> Path:
    """Write a checkpoint as a Hugging Face folder; its path.

    Args:
        run_dir: a run's ``trainer.default_local_dir``.
        step: which checkpoint; the newest complete one by default.
        out: the folder to make; ``RUN_DIR/model_step_N`` by default.

    Raises:
        ExportError: no such checkpoint, or ``out`` exists already.
        OSError: ``out`` cannot be written.
    """
    checkpoint = find_checkpoint(run_dir, step)
    out = out or run_dir / f"model_step_{checkpoint.step}"
    if out.exists():
        raise ExportError(f"{out} exists already; remove it, or name another folder with --out")
    with atomic_folder(out) as temporary:
        write_card(run_dir, checkpoint.step, temporary)
        write_model(checkpoint.folder, temporary)
    return out


def write_model(checkpoint: Path, out: Path) -> None:
    """Write weights in bfloat16, config, tokenizer, processor and generation config to ``out``.

    Nothing of the checkpoint is executed: its shards are read as tensors only.
    """
    from verl.model_merger.base_model_merger import ModelMergerConfig
    from verl.model_merger.fsdp_model_merger import FSDPModelMerger

    config = ModelMergerConfig(
        operation="merge",
        backend="fsdp",
        local_dir=str(checkpoint),
        hf_model_config_path=str(checkpoint / "huggingface"),
        target_dir=str(out),
    )
    with _tensors_only(), redirect_stdout(sys.stderr):  # stdout is for the path only
        FSDPModelMerger(config).merge_and_save()
    for file in out.iterdir():
        file.chmod(file.stat().st_mode | stat.S_IRGRP | stat.S_IROTH)  # safetensors: owner only


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Make ``torch.load`` refuse pickled code, although the merger allows it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
