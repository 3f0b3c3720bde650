"""Find a checkpoint of a run to export, check that it is complete, and read its tensors."""

import json
import zipfile
from collections.abc import Mapping
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

LORA_FILE = "lora_train_meta.json"
"""Written by veRL for a model with adapters."""
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
    lora: "LoraScale | None" = None
    """None for a run that trained all weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraScale:
    """Rank and alpha of a checkpoint's adapters."""

    rank: int
    alpha: int

    @property
    def factor(self) -> float:
        """Scale of B A when it is added to the weight."""
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """The adapter of one linear layer: ``y = W x + factor * B A x``."""

    a: Any
    """[rank, in], as trained."""
    b: Any
    """[out, rank]."""


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
    return Checkpoint(step=step, folder=folder / "actor", lora=_lora_scale(folder / "actor"))


def read_weights(checkpoint: Checkpoint, dtype: Any) -> dict[str, Any]:
    """All tensors of the model by name, adapters merged into them.

    A layer's merged weight is W + factor * B A, computed in float32 and rounded once.

    Args:
        dtype: torch's, of the result.

    Raises:
        ExportError: the checkpoint holds adapters only.
        Exception: whatever torch raises for shards that are damaged.
    """
    shards = _load_shards(checkpoint.folder)
    adapters = _take_adapters(shards, checkpoint.lora)
    if adapters and not shards[0]:
        raise ExportError(
            f"{checkpoint.folder} holds adapters only (actor.checkpoint.save_lora_only), and no "
            "weights to merge them into; export them with --adapter"
        )
    weights = {}
    for name in sorted(shards[0]):
        tensor = _take(shards, name)
        adapter = adapters.pop(_layer(name.removesuffix(".base_layer.weight")), None)
        if adapter is not None and checkpoint.lora is not None:
            change = checkpoint.lora.factor * (adapter.b.float() @ adapter.a.float())
            tensor = tensor.float() + change
        weights[_layer(name.replace(".base_layer.", "."))] = tensor.to(dtype)
    if adapters:
        raise ExportError(
            f"{checkpoint.folder} holds adapters of layers that it lacks: "
            f"{', '.join(sorted(adapters)[:_NUM_SHOWN])}; {_COPY_AGAIN}"
        )
    return weights


def read_adapters(checkpoint: Checkpoint) -> dict[str, Adapter]:
    """The adapters by the name of their layer.

    Raises:
        ExportError: there are none.
        Exception: whatever torch raises for shards that are damaged.
    """
    adapters = _take_adapters(_load_shards(checkpoint.folder), checkpoint.lora)
    if not adapters:
        raise ExportError(
            f"{checkpoint.folder} holds no adapters: all weights were trained "
            "(actor_rollout_ref.model.lora_rank=0); export without --adapter"
        )
    return adapters


def _load_shards(folder: Path) -> list[dict[str, Any]]:
    """Each rank's part of the model, read as tensors only; replicas are left out."""
    import torch
    from torch.distributed.tensor import DTensor

    world_size = _world_size(folder / "fsdp_config.json")

    def load(rank: int) -> dict[str, Any]:
        file = folder / f"model_world_size_{world_size}_rank_{rank}.pt"
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(content, Mapping) or not content:
            raise TypeError(f"{file.name} holds no tensors by name")
        return content

    shards, num_shards = [load(0)], world_size
    some = next(iter(shards[0].values()))
    if isinstance(some, DTensor):
        names = some.device_mesh.mesh_dim_names
        if names not in (("fsdp",), ("ddp", "fsdp")):
            raise ValueError(f"shards over a mesh of {names}, and not of FSDP alone")
        num_shards = some.device_mesh.mesh.shape[-1]
    return shards + [load(rank) for rank in range(1, num_shards)]


def _take(shards: list[dict[str, Any]], name: str) -> Any:
    """A full tensor, removed from the shards."""
    import torch
    from torch.distributed.tensor import DTensor, Shard
    from verl.model_merger.fsdp_model_merger import merge_non_dtensor_shards

    parts = [shard.pop(name) for shard in shards]
    if not isinstance(parts[0], DTensor):
        return merge_non_dtensor_shards(name, parts)
    placement = parts[0].placements[-1]  # of the mesh's last dimension, which shards
    local = [part.to_local() for part in parts]
    return torch.cat(local, dim=placement.dim) if isinstance(placement, Shard) else local[0]


def _take_adapters(shards: list[dict[str, Any]], lora: LoraScale | None) -> dict[str, Adapter]:
    adapters = {}
    for name in [name for name in shards[0] if ".lora_A." in name]:
        adapter = Adapter(a=_take(shards, name), b=_take(shards, name.replace("_A.", "_B.")))
        if lora is None or not adapter.a.shape[0] == adapter.b.shape[1] == lora.rank:
            raise ExportError(
                f"{name} has rank {adapter.a.shape[0]}, and {LORA_FILE} says "
                f"{lora.rank if lora else 'nothing'}; {_COPY_AGAIN}"
            )
        adapters[_layer(name.partition(".lora_A.")[0])] = adapter
    if lora and not adapters:
        raise ExportError(f"{LORA_FILE} speaks of adapters that the shards lack; {_COPY_AGAIN}")
    return adapters


def _layer(name: str) -> str:
    """A name in the model, from one in peft's model around it."""
    return name.removeprefix("base_model.model.")


def _lora_scale(folder: Path) -> LoraScale | None:
    file = folder / LORA_FILE
    if not file.is_file():
        return None
    stated = _read_json(file)
    rank, alpha = stated.get("r"), stated.get("lora_alpha")
    if not (type(rank) is int and type(alpha) is int and min(rank, alpha) > 0):
        raise ExportError(f"{file} gives no rank and alpha (r, lora_alpha); {_COPY_AGAIN}")
    return LoraScale(rank=rank, alpha=alpha)


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
    """What is wrong with a file of torch.save (a zip archive, its index at the end); else None."""
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
