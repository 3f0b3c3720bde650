"""veRL's actor and reference workers with upstream faults fixed; they also run on CPU."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.single_controller.base.decorator import (
    Dispatch,
    make_nd_compute_dataproto_dispatch_fn,
    register,
)
from verl.trainer.ppo.core_algos import agg_loss
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name, get_torch_device
from verl.utils.metric import AggregationType, Metric
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.utils.padding import no_padding_2_padding

from vapo_verl import heartbeat
from vapo_verl.config import MethodConfig
from vapo_verl.methods import Method, method_of, short_name
from vapo_verl.patches import text_only_forward
from vapo_verl.patches.upstream import (
    restore_buffers,
    session_folder,
    use_frozen_tower,
    use_weight_sender,
    with_ragged_positions,
)
from vapo_verl.rollout.correction import BYPASS_LOSS
from vapo_verl.rollout.prompts import MASKED_LOG_PROBS, Masking, PromptPixels
from vapo_verl.rollout.transfer import KVBatchMeta, for_models
from vapo_verl.run_folder.checkpoints import FileRecord, file_records

WEIGHT_SENDER = "vapo_verl.rollout.weight_sync.VapoServerAdapter"
"""A path, because importing it imports vLLM, which only the sending process needs."""
MASKING = "masking"
"""Key of a batch whose forward pass is to see masked images; its value is a :class:`Masking`."""
GIB = 2**30
RANK_OF_FILE = re.compile(r"_rank_(\d+)\.pt$")

use_weight_sender(WEIGHT_SENDER)
text_only_forward.apply()
if get_device_name() == "cpu":
    import vapo_verl.platform.fsdp  # noqa: F401  registers the FSDP engine for this device


class VapoTrainingWorker(TrainingWorker):
    """One rank of the actor or of the reference policy."""

    pixels = PromptPixels(get_device_name())
    """One for the actor and the reference of a process, which read the same prompts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if get_device_name() == "cpu" and not torch.distributed.is_initialized():
            # veRL 0.9.1 asks torch for "cpu:gloo,cpu:gloo", which it refuses, but keeps a group
            torch.distributed.init_process_group(
                "gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"])
            )
        heartbeat.start(session_folder() / heartbeat.FOLDER)
        self._beats = False
        super().__init__(*args, **kwargs)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def reset(self) -> None:
        """Build the model and load its weights."""
        super().reset()
        restore_buffers(self.engine.module, self.engine.model_config.hf_config)

    def _beat(self) -> None:
        """Count the model's forward passes from now on, one for each micro-batch."""
        if not self._beats:
            self._beats = True
            self.engine.module.register_forward_pre_hook(
                lambda *_: heartbeat.beat("in a pass over a micro-batch")
            )

    @register(
        dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="train"), blocking=False
    )
    def train_mini_batch(self, data: TensorDict) -> TensorDict:
        self._beat()
        return super().train_mini_batch(self.pixels.join(with_ragged_positions(data)))

    @register(
        dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="train"), blocking=False
    )
    def infer_batch(self, data: TensorDict) -> TensorDict:
        self._beat()
        masking: Masking | None = tu.pop(data, MASKING)
        return super().infer_batch(self.pixels.join(with_ragged_positions(data), masking))


class FrozenTowerWorker(VapoTrainingWorker):
    """One rank of an actor whose vision tower is not trained."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        use_frozen_tower(self.engine)


class VapoWorker(ActorRolloutRefWorker):
    """veRL's fused actor, rollout and reference worker over :class:`VapoTrainingWorker`."""

    actor_worker_cls = VapoTrainingWorker
    ref_worker_cls = VapoTrainingWorker

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """Build the models; the actor's vision tower is frozen if the config says so.

        The parameters that FSDP 1 shards as one are then partly frozen, which needs
        ``use_orig_params``. With LoRA it wraps each adapter by itself, and needs nothing.
        """
        actor = self.config.actor
        if actor.freeze_vision_tower:
            self.actor_worker_cls = FrozenTowerWorker
            if actor.strategy == "fsdp" and not self.config.model.lora_rank:
                actor.fsdp_config.use_orig_params = True
        super().init_model()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def forget_server(self) -> None:
        """Send all weights to a server that has been restarted, those below a LoRA adapter too."""
        self.rollout.forget_server()
        self.base_sync_done = "dummy" not in self.config.rollout.load_format

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def use_method(self, config: MethodConfig) -> None:
        """Train the actor with the terms that the method adds to the loss."""
        method = method_of(config)
        loss = partial(loss_with_method, self.loss_fn, method, f"vapo/{short_name(config.name)}")
        self.actor.set_loss_fn(loss)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def peak_device_memory(self) -> float:
        """See :func:`peak_device_memory`; a list of one number per rank for the caller."""
        return peak_device_memory()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def record_files(self, checkpoint: str) -> dict[str, FileRecord]:
        """Sync and record the files that this rank wrote; rank 0 those without a rank, too."""

        def is_ours(name: str) -> bool:
            rank = RANK_OF_FILE.search(name)
            return (int(rank[1]) if rank else 0) == self.rank

        return file_records(Path(checkpoint), is_ours)


class VapoDetachedWorker(VapoWorker, DetachActorWorker):
    """The worker of an actor whose engine is elsewhere; keeps a copy of its weights."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_model_to_cpu(self, n: int) -> None:
        """See the base class, which makes no copy of weights that are on the CPU already."""
        super().save_model_to_cpu(n)
        if get_device_name() == "cpu":
            weights, spec = self.cpu_saved_models[n]
            copied = {name: (weight.clone(), of) for name, (weight, of) in weights.items()}
            self.cpu_saved_models[n] = copied, spec


def loss_with_method(
    policy_loss: Callable[..., tuple[torch.Tensor, dict[str, Any]]],
    method: Method,
    prefix: str,
    model_output: dict[str, Any],
    data: TensorDict,
    dp_group: Any = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """veRL's policy loss of a micro-batch and the method's terms, aggregated alike.

    A micro-batch of padding only, which failed responses leave, has no loss.

    Args:
        policy_loss: veRL's ``ppo_loss``, a partial with the actor's `config`.
        prefix: of the metric of each term.
        model_output: ``log_probs`` of prompt and response, ragged.
        data: the micro-batch; its ``masked_log_probs`` are read where the method has a masked view.
    """
    config = policy_loss.keywords["config"]  # type: ignore[attr-defined]
    log_probs = no_padding_2_padding(model_output["log_probs"], data)
    is_empty = config.policy_loss.loss_mode == BYPASS_LOSS and not data["response_mask"].any()
    loss, metrics = policy_loss(
        model_output=model_output, data=_with_tokens(data) if is_empty else data, dp_group=dp_group
    )
    if is_empty:
        loss = 0.0 * log_probs.sum()
    names = ["response_mask", *([MASKED_LOG_PROBS] if method.mask_fraction else [])]
    columns = data.select(*names).to_padded_tensor()
    masked = columns[MASKED_LOG_PROBS] if method.mask_fraction else torch.zeros_like(log_probs)
    for name, terms in method.token_losses(log_probs, masked).items():
        added = agg_loss(
            loss_mat=terms,
            loss_mask=columns["response_mask"].bool(),
            loss_agg_mode=config.loss_agg_mode,
            **config.global_batch_info,  # as `policy_loss` has set it
        )
        loss = loss + added
        metrics[f"{prefix}/{name}_loss"] = Metric(aggregation=AggregationType.SUM, value=added)
    return loss, metrics


def _with_tokens(data: TensorDict) -> TensorDict:
    """A micro-batch of padding only, for a loss that refuses one: its tokens, without advantage.

    This rank then has as many metrics as the others, with which veRL merges them.
    """
    mask, advantages = data["response_mask"], data["advantages"]
    changed = {"response_mask": torch.ones_like(mask), "advantages": torch.zeros_like(advantages)}
    return data.copy().update(changed)


def peak_device_memory() -> float:
    """Peak GiB in use on this process's device since the last call, by all processes on it.

    peak = (device in use - reserved by this process) + most reserved by this process

    The first term is the current value: an engine beside this process does not grow while the
    process works, and vice versa. On CPU it is the machine's memory, and this process's peak is
    since its start.
    """
    device = get_torch_device()
    free, total = device.mem_get_info()
    peak = total - free - device.memory_reserved() + device.max_memory_reserved()
    device.reset_peak_memory_stats()
    return peak / GIB


def masked_view(batch: KVBatchMeta, temperature: float, masking: Masking) -> KVBatchMeta:
    """The batch for one more `compute_log_prob`, in which the model sees masked images."""
    settings = {"calculate_entropy": False, "compute_loss": False, "temperature": temperature}
    return replace(for_models(batch), extra_info={**settings, MASKING: masking})


class PhaseMemory:
    """Collects ``vapo/memory/PHASE_gib`` over a step.

    Args:
        workers: veRL's worker group, whose workers have `peak_device_memory`.
    """

    def __init__(self, workers: Any) -> None:
        self._workers = workers
        self._peaks: dict[str, float] = {}

    def end_phase(self, phase: str) -> None:
        """Call this when a phase has ended on all ranks, before the next begins.

        A step of several mini-batches has a phase several times.
        """
        peak = max(self._workers.peak_device_memory())
        self._peaks[phase] = max(peak, self._peaks.get(phase, 0.0))

    def metrics(self) -> dict[str, float]:
        """Peaks of the phases that have ended since the last call, one step ago."""
        metrics = {f"vapo/memory/{phase}_gib": peak for phase, peak in self._peaks.items()}
        self._peaks.clear()
        return metrics
