"""GPU memory of one rank, estimated, against the device.

With P parameters, world = n_gpus_per_node * nnodes, b bytes of `actor.fsdp_config.model_dtype`:

    training  P * (b weights [0 if param_offload] + b gradients + 2b Adam [0 if optimizer_offload])
              / world + P * b / world for the reference [0 if param_offload]; FSDP shards evenly
    engine    gpu_memory_utilization * device memory: weights P * c / tensor_parallel_size with c
              bytes of `rollout.dtype`, the rest is KV cache

With `free_cache_engine` the two take turns; without it both lie there at once. Activations come
on top: they follow ppo_max_token_len_per_gpu and are not estimated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import DictConfig

from vapo_verl.doctor.findings import Finding, error, gib, ok, warning
from vapo_verl.doctor.gpus import torch_cuda
from vapo_verl.doctor.model_size import model_size
from vapo_verl.doctor.training_state import dtype_bytes, has_reference, parameter_bytes

CHECK = "gpu memory"
TIGHT = 0.8
"""Share of a device beyond which activations hardly fit beside the training state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """Bytes on one GPU."""

    training: float
    engine_weights: float


def check_gpu_memory(config: DictConfig) -> Iterator[Finding]:
    if config.trainer.device == "cpu":
        return
    size = model_size(config)
    if size is None:
        yield warning(
            CHECK,
            f"the size of actor_rollout_ref.model.path={config.actor_rollout_ref.model.path} "
            "is not known here",
            f"hf download {config.actor_rollout_ref.model.path}",
        )
        return
    yield judged(config, rank_memory(config, size.num_parameters), torch_cuda().memory_bytes)


def rank_memory(config: DictConfig, num_parameters: float) -> RankMemory:
    policy, trainer = config.actor_rollout_ref, config.trainer
    actor, reference = policy.actor.fsdp_config, policy.ref.fsdp_config
    copies = (not actor.param_offload) + 1 + 2 * (not actor.optimizer_offload)
    copies += has_reference(config) and not reference.param_offload
    world = trainer.n_gpus_per_node * trainer.nnodes
    return RankMemory(
        training=num_parameters * parameter_bytes(config) * copies / world,
        engine_weights=num_parameters
        * dtype_bytes(policy.rollout.dtype)
        / policy.rollout.tensor_model_parallel_size,
    )


def judged(config: DictConfig, need: RankMemory, device_bytes: float) -> Finding:
    """Compare with the device; without one (0 bytes) the estimate alone is told."""
    rollout = config.actor_rollout_ref.rollout
    found = (
        f"a rank takes {gib(need.training)} for training without activations, "
        f"{gib(need.engine_weights)} for the engine's weights"
    )
    if not device_bytes:
        return ok(CHECK, f"{found} (no GPU here to compare with)")
    share = rollout.gpu_memory_utilization * device_bytes
    found = f"{found}; the GPU has {gib(device_bytes)}, the engine's share is {gib(share)}"
    if need.engine_weights >= share:
        return error(
            CHECK,
            f"{found}: no room for a KV cache",
            "raise actor_rollout_ref.rollout.gpu_memory_utilization or tensor_model_parallel_size",
        )
    at_once = need.training + (0.0 if rollout.free_cache_engine else share)
    if at_once > TIGHT * device_bytes:
        say = error if at_once > device_bytes else warning
        return say(
            CHECK,
            f"{found}: {gib(at_once)} at once leaves little or nothing for activations",
            "actor_rollout_ref.actor.fsdp_config.optimizer_offload=true, "
            "actor_rollout_ref.rollout.free_cache_engine=true, or more GPUs",
        )
    return ok(CHECK, found)
