"""Whether a run can go on from what its run folder holds: every rank reads back its own shard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from vapo_verl.doctor.findings import Finding, error, ok
from vapo_verl.trainer.checkpoints import checkpoint_folder, latest_complete

CHECK = "resume"
SHARD = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")
"""As veRL's FSDP checkpoint manager names them."""


def check_resume(config: DictConfig) -> Iterator[Finding]:
    """The newest whole checkpoint's shards, against the ranks of this run."""
    trainer, run_dir = config.trainer, Path(config.trainer.default_local_dir).expanduser()
    step = latest_complete(run_dir)
    if trainer.resume_mode != "auto" or step is None:
        return
    folder = checkpoint_folder(run_dir, step) / "actor"
    ranks = trainer.n_gpus_per_node * trainer.nnodes
    shards = [match for path in folder.glob("*.pt") if (match := SHARD.fullmatch(path.name))]
    if sizes := {int(m[1]) for m in shards} - {ranks}:
        yield error(
            CHECK,
            f"{folder} was written by {max(sizes)} ranks, but this run has {ranks} "
            "(trainer.n_gpus_per_node * trainer.nnodes)",
            f"resume on {max(sizes)} ranks, or start anew: another trainer.default_local_dir",
        )
    elif len(shards) < ranks:
        yield error(
            CHECK,
            f"{folder} holds {len(shards)} of {ranks} shards; the others lie elsewhere",
            "copy them there, and put trainer.default_local_dir on a file system all nodes share",
        )
    else:
        yield ok(CHECK, f"{folder}: the run goes on after step {step}")
