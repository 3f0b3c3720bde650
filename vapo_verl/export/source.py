"""Find a checkpoint of a run to export, and check that it is complete."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vapo_verl.run_folder.checkpoints import (
    CheckpointError,
    checkpoint_folder,
    complete_steps,
    incomplete,
    require_intact,
)

CONFIGS = ("huggingface/config.json", "huggingface/tokenizer_config.json")
_MAX_RANKS = 100_000
_NUM_SHOWN = 5
_START_BYTES = 512
_COPY_AGAIN = "copy the checkpoint again, or export another with --step"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A complete FSDP checkpoint of a run's actor."""

    step: int
    folder: Path
    """With ``model_world_size_*_rank_*.pt``, ``fsdp_config.json`` and ``huggingface/``."""


def find_checkpoint(run_dir: Path, step: int | None = None) -> Checkpoint:
    """The checkpoint of ``step``, or the newest one.

    Raises:
        ExportError: it is missing, incomplete, damaged, or of a kind that cannot be exported.
    """
    if not run_dir.is_dir():
        raise ExportError(f"{run_dir} is no folder; give a run's trainer.default_local_dir")
    steps = complete_steps(run_dir)
    if not steps:
        raise ExportError(_without_any(run_dir))
    if step is not None and step not in steps:
        complete = ", ".join(map(str, steps))
        unfinished = checkpoint_folder(run_dir, step) in incomplete(run_dir)
        problem = "was never finished" if unfinished else "does not exist"
        raise ExportError(f"--step {step}: that checkpoint {problem}; complete ones are {complete}")
    step = steps[-1] if step is None else step
    folder = checkpoint_folder(run_dir, step)
    _check_files(folder / "actor")
    try:
        require_intact(folder)
    except CheckpointError as error:
        raise ExportError(error.message) from error
    return Checkpoint(step=step, folder=folder / "actor")


def _without_any(run_dir: Path) -> str:
    unfinished = ", ".join(folder.name for folder in incomplete(run_dir))
    found = f"only unfinished ones ({unfinished})" if unfinished else "no global_step_N"
    return (
        f"{run_dir} holds no complete checkpoint, {found}; run on until trainer.save_freq is "
        "reached, or stop the run with SIGTERM, which saves one"
    )


def _check_files(folder: Path) -> None:
    fsdp_config = folder / "fsdp_config.json"
    if not fsdp_config.is_file():
        raise ExportError(f"{fsdp_config} is missing: only checkpoints of FSDP can be exported")
    if (folder / "lora_train_meta.json").is_file():
        raise ExportError(
            f"{folder} holds LoRA adapters, which are not merged here; use "
            f"python -m verl.model_merger merge --backend fsdp --local_dir {folder}"
        )
    world_size = _world_size(fsdp_config)
    shards = [f"model_world_size_{world_size}_rank_{rank}.pt" for rank in range(world_size)]
    needed = [*shards, *CONFIGS]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        others = sorted(path.name for path in folder.glob("model_world_size_*.pt"))
        found = f" (there are {', '.join(others[:_NUM_SHOWN])})" if others else ""
        shown = ", ".join(missing[:_NUM_SHOWN]) + (", ..." if len(missing) > _NUM_SHOWN else "")
        raise ExportError(
            f"{folder} lacks {shown}{found}; copy the complete checkpoint, or export another "
            "with --step"
        )
    for name in CONFIGS:
        _read_json(folder / name)
    for name in shards:
        if problem := _shard_problem(folder / name):
            raise ExportError(f"{folder / name} {problem}; {_COPY_AGAIN}")


def _world_size(file: Path) -> int:
    world_size = _read_json(file).get("world_size")
    if type(world_size) is not int or not 1 <= world_size <= _MAX_RANKS:
        raise ExportError(f"{file} gives no number of ranks (world_size); {_COPY_AGAIN}")
    return world_size


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{file} is no JSON ({error}); {_COPY_AGAIN}") from error
    if not isinstance(content, dict):
        raise ExportError(f"{file} holds no JSON object; {_COPY_AGAIN}")
    return content


def _shard_problem(file: Path) -> str | None:
    """What is wrong with a file that torch.save wrote: a zip archive, whose index is at its end."""
    with file.open("rb") as stream:
        start = stream.read(_START_BYTES)
    if not start.strip(b"\0"):
        return "is empty" if not start else "begins with zeros: it was never written to its end"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS and not the file; run `git lfs pull`"
    if start.lstrip()[:1] == b"<":
        return "is a web page saved in place of the file"
    if not start.startswith(b"PK"):
        return "is no file that torch.save writes"
    return None if zipfile.is_zipfile(file) else "is truncated"


class ExportError(ValueError):
    """A run, checkpoint or output that cannot be used; the message names path and fix."""
