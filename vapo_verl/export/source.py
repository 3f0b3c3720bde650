"""Find a checkpoint of a run to export, and check that it is complete."""

import json
from dataclasses import dataclass
from pathlib import Path

from vapo_verl.run_folder.checkpoints import checkpoint_folder, complete_steps, incomplete


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A complete FSDP checkpoint of a run's actor."""

    step: int
    folder: Path
    """With ``model_world_size_*_rank_*.pt``, ``fsdp_config.json`` and ``huggingface/``."""


def find_checkpoint(run_dir: Path, step: int | None = None) -> Checkpoint:
    """The checkpoint of ``step``, or the newest one.

    Raises:
        ExportError: it is missing, incomplete, or of a kind that cannot be exported.
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
    folder = checkpoint_folder(run_dir, step) / "actor"
    _check_files(folder)
    return Checkpoint(step=step, folder=folder)


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
    world_size = json.loads(fsdp_config.read_text())["world_size"]
    needed = [f"model_world_size_{world_size}_rank_{rank}.pt" for rank in range(world_size)]
    needed += ["huggingface/config.json", "huggingface/tokenizer_config.json"]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise ExportError(
            f"{folder} lacks {', '.join(missing)}; copy the complete checkpoint, or export another "
            "with --step"
        )


class ExportError(ValueError):
    """No such run or checkpoint, or an existing output; the message names path and fix."""
