"""veRL's actor and reference workers with three upstream faults fixed; they also run on CPU."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import (
    Dispatch,
    make_nd_compute_dataproto_dispatch_fn,
    register,
)
from verl.utils.device import get_device_name
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from vapo_verl.patches import text_only_forward
from vapo_verl.patches.mrope_nesting import with_ragged_positions
from vapo_verl.patches.upstream import use_weight_sender
from vapo_verl.run_folder.checkpoints import FileRecord, file_records
from vapo_verl.trainer.phase_memory import peak_device_memory

WEIGHT_SENDER = "vapo_verl.rollout.weight_sync.VapoServerAdapter"
"""A path, because importing it imports vLLM, which only the sending process needs."""
RANK_OF_FILE = re.compile(r"_rank_(\d+)\.pt$")

use_weight_sender(WEIGHT_SENDER)
text_only_forward.apply()
if get_device_name() == "cpu":
    import vapo_verl.platform.fsdp  # noqa: F401  registers the FSDP engine for this device


class VapoTrainingWorker(TrainingWorker):
    """One rank of the actor or of the reference policy."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if get_device_name() == "cpu" and not torch.distributed.is_initialized():
            # veRL 0.9.1 asks torch for "cpu:gloo,cpu:gloo", which it refuses, but keeps a group
            torch.distributed.init_process_group(
                "gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"])
            )
        super().__init__(*args, **kwargs)

    @register(
        dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="train"), blocking=False
    )
    def train_mini_batch(self, data: TensorDict) -> TensorDict:
        return super().train_mini_batch(with_ragged_positions(data))

    @register(
        dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="train"), blocking=False
    )
    def infer_batch(self, data: TensorDict) -> TensorDict:
        return super().infer_batch(with_ragged_positions(data))


class VapoWorker(ActorRolloutRefWorker):
    """veRL's fused actor, rollout and reference worker over :class:`VapoTrainingWorker`."""

    actor_worker_cls = VapoTrainingWorker
    ref_worker_cls = VapoTrainingWorker

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def peak_device_memory(self) -> float:
        """See phase_memory.py; a list of one number per rank for the caller."""
        return peak_device_memory()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def record_files(self, checkpoint: str) -> dict[str, FileRecord]:
        """Sync and record the files that this rank wrote; rank 0 those without a rank, too."""

        def is_ours(name: str) -> bool:
            rank = RANK_OF_FILE.search(name)
            return (int(rank[1]) if rank else 0) == self.rank

        return file_records(Path(checkpoint), is_ours)
