"""FSDP shards to one Hugging Face model, by veRL's merger."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path


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
    with _tensors_only(), redirect_stdout(sys.stderr):  # stdout is for the path alone
        FSDPModelMerger(config).merge_and_save()
    for file in out.iterdir():
        file.chmod(file.stat().st_mode | stat.S_IRGRP | stat.S_IROTH)  # safetensors: owner only


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Make ``torch.load`` refuse pickled code, although the merger does not ask it to."""
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
