"""Check space and write permission for checkpoints and temporary files.

A checkpoint holds, with P parameters of b bytes each (`actor.fsdp_config.model_dtype`),

    bytes = C * (P * b (weights) + 2 * T * b (Adam's two moments, where save_contents has
            `optimizer`)) + P * b (where it has `hf_model`)

where T of the parameters are trained: all, or LoRA's adapters; and C ranks hold a copy of each
shard (`fsdp_size`), which all write theirs. The weights of the adapters alone are saved with
`actor.checkpoint.save_lora_only`. The run folder holds
`trainer.max_actor_ckpt_to_keep` checkpoints, or one for each save.
"""

import math
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from vapo_verl.doctor.findings import GIB, Finding, error, gib, ok, warning
from vapo_verl.doctor.model_size import model_size, parameter_bytes, trained_parameters
from vapo_verl.files import nearest_existing
from vapo_verl.lora import lora_of
from vapo_verl.preflight import ranks_of, shard_ranks_of
from vapo_verl.run_folder.checkpoints import (
    CheckpointError,
    checkpoint_folder,
    complete_steps,
    damage_message,
    resume_point,
)

CHECK = "disk"
LEAST_TEMPORARY, ENOUGH_TEMPORARY = GIB, 10 * GIB
RAY_REFUSES_BEYOND = 0.95
"""Ray stops spilling objects on a file system that is fuller (local_fs_capacity_threshold)."""
RESUME_CHECK = "resume"
SHARD = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")
"""Shard names of veRL's FSDP checkpoint manager."""


def check_disk(config: DictConfig | None) -> Iterator[Finding]:
    yield check_temporary(Path(tempfile.gettempdir()))
    if config is None:
        return
    folder = Path(config.trainer.default_local_dir).expanduser().absolute()
    problem = unwritable(folder)
    if problem:
        yield error(
            CHECK,
            f"trainer.default_local_dir={folder} cannot be written: {problem}",
            "name a folder that you may write: trainer.default_local_dir=PATH",
        )
    else:
        yield check_checkpoints(config, folder)


def check_temporary(folder: Path) -> Finding:
    """Check the folder of Ray's session, spilled objects and sockets."""
    problem = unwritable(folder)
    if problem:
        fix = "export TMPDIR=PATH, a folder that you may write"
        return error(CHECK, f"temporary folder {folder} cannot be written: {problem}", fix)
    usage = shutil.disk_usage(folder)
    found = f"temporary folder {folder}: {gib(usage.free)} free of {gib(usage.total)}"
    fix = "free some, or another folder: TMPDIR and +ray_kwargs.ray_init._temp_dir=PATH"
    if usage.free < LEAST_TEMPORARY:
        return error(CHECK, f"{found}; Ray needs at least {gib(LEAST_TEMPORARY)}", fix)
    if usage.free < ENOUGH_TEMPORARY or usage.used > RAY_REFUSES_BEYOND * usage.total:
        return warning(CHECK, f"{found}; Ray refuses to spill at {RAY_REFUSES_BEYOND:.0%}", fix)
    return ok(CHECK, found)


def check_checkpoints(config: DictConfig, folder: Path) -> Finding:
    free = shutil.disk_usage(nearest_existing(folder)).free
    size, number = model_size(config), num_checkpoints(config)
    place = f"trainer.default_local_dir={folder}: {gib(free)} free"
    if number == 0:
        return ok(CHECK, f"{place}; trainer.save_freq={config.trainer.save_freq} saves nothing")
    if size is None:
        return warning(
            CHECK,
            f"{place}; the size of {config.actor_rollout_ref.model.path} is not known here",
            "download the model, or count 12 bytes a parameter for each checkpoint",
        )
    each = checkpoint_bytes(config, size.num_parameters)
    kept = config.trainer.max_actor_ckpt_to_keep
    fewer = "trainer.max_actor_ckpt_to_keep=2, " if kept is None or kept > 2 else ""
    fix = f"free some, {fewer}or trainer.default_local_dir=PATH elsewhere"
    if number is None:
        found = f"{place}; a checkpoint takes {gib(each)}, and all of them are kept"
        say = error if each > free else warning
        return say(CHECK, f"{found} (trainer.max_actor_ckpt_to_keep=null)", fix)
    found = f"{place}; {number} checkpoints of {gib(each)} take {gib(number * each)} for {size}"
    there = min(len(complete_steps(folder)), number)
    if there:
        found += f", and {there} of them are there"
    return error(CHECK, found, fix) if (number - there) * each > free else ok(CHECK, found)


def checkpoint_bytes(config: DictConfig, num_parameters: float) -> float:
    checkpoint = config.actor_rollout_ref.actor.checkpoint
    trained = trained_parameters(config, num_parameters)
    saved = num_parameters
    if lora_of(config):
        saved = trained + num_parameters * (not checkpoint.get("save_lora_only", False))
    moments = 2 * trained if "optimizer" in checkpoint.save_contents else 0
    copies = ranks_of(config) // shard_ranks_of(config)
    whole = num_parameters if "hf_model" in checkpoint.save_contents else 0
    return parameter_bytes(config) * (copies * (saved + moments) + whole)


def num_checkpoints(config: DictConfig) -> int | None:
    """The most checkpoints kept at once; None if that depends on the length of the data."""
    trainer = config.trainer
    if trainer.save_freq <= 0:
        return 0
    kept = trainer.max_actor_ckpt_to_keep
    kept = kept and max(kept, 2)  # the last one stays until the next is complete
    kept = kept and kept + bool(config.vapo.keep_best)
    if trainer.total_training_steps is None:
        return kept
    saves = math.ceil(trainer.total_training_steps / trainer.save_freq)
    return min(saves, kept) if kept else saves


def unwritable(folder: Path) -> str:
    """Why a folder, or its nearest existing parent, cannot be written; empty if it can."""
    try:
        with tempfile.TemporaryFile(dir=nearest_existing(folder)):
            return ""
    except OSError as problem:
        return str(problem)


def check_resume(config: DictConfig) -> Iterator[Finding]:
    """Verify the checkpoint that the run resumes from, and compare its shards with the ranks."""
    run_dir = Path(config.trainer.default_local_dir).expanduser()
    if config.trainer.resume_mode != "auto":
        return
    try:
        point = resume_point(run_dir)
    except CheckpointError as problem:
        damage, _, fix = problem.message.rpartition("\n")
        yield error(RESUME_CHECK, damage, fix)
        return
    step = point.step
    if step is None:
        return
    for newer, problems in point.damaged.items():
        yield warning(
            RESUME_CHECK,
            f"{damage_message(checkpoint_folder(run_dir, newer), problems)}; the run falls back to "
            f"step {step}",
            "restore these files from a copy to resume after the newer step",
        )
    if not point.verified:
        yield warning(
            RESUME_CHECK,
            f"{checkpoint_folder(run_dir, step)} was written by an older release, without "
            "checksums: damage is not noticed before it is loaded",
            "nothing to do: the next checkpoint has checksums",
        )
    folder = checkpoint_folder(run_dir, step) / "actor"
    ranks = ranks_of(config)
    shards = [match for path in folder.glob("*.pt") if (match := SHARD.fullmatch(path.name))]
    if sizes := {int(m[1]) for m in shards} - {ranks}:
        yield error(
            RESUME_CHECK,
            f"{folder} was written by {max(sizes)} ranks, but this run has {ranks} "
            "(trainer.n_gpus_per_node * trainer.nnodes)",
            f"resume on {max(sizes)} ranks, or start again: another trainer.default_local_dir",
        )
    elif len(shards) < ranks:
        yield error(
            RESUME_CHECK,
            f"{folder} holds {len(shards)} of {ranks} shards; the others are elsewhere",
            "copy them there, and put trainer.default_local_dir on a file system all nodes share",
        )
    else:
        yield ok(RESUME_CHECK, f"{folder}: the run resumes after step {step}")
