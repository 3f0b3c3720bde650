"""Host memory of one node, estimated, against what is available.

With P parameters, world = n_gpus_per_node * nnodes and s = n_gpus_per_node / world:

    processes  0.8 GiB * (5 + 3 * n_gpus_per_node + agent loop, reward and storage processes)
    state      on CPU: P * (b weights + b gradients + 2b Adam + b reference) + engine weights and
               KV cache; on GPU: what is off-loaded, P * s * b for parameters of actor and of
               reference each, P * s * 2b for the optimizer. b: bytes of fsdp_config.model_dtype.
               The reference counts only where a KL term needs it
    checkpoint while one is written: P * s * 3b where FSDP 1 (actor.strategy=fsdp) on GPU copies its
               shards to the host, P * s * b without `optimizer` in save_contents; and P * b, all
               of it on one node, where save_contents has `hf_model`. FSDP 2 streams its shards
    images     train_batch_size * n * pixels * 24 bytes: the replay buffer keeps `pixel_values` of
               every response (fp32, 3 channels, each frame twice), plus 3 bytes a pixel of a prompt
               for the decoded image. At most, for one image a prompt, as large as max_pixels and
               max_prompt_length let it be

All but the images are needed in any run; these are an upper bound. 0.8 GiB is what a process that
imports torch and vLLM takes: the smoke recipe's 11 were measured at 8.9 GiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from vapo_verl.doctor.findings import GIB, Finding, error, gib, ok, warning
from vapo_verl.doctor.memory_limit import available_memory
from vapo_verl.doctor.model_size import image_cut, model_folder, model_size
from vapo_verl.doctor.training_state import dtype_bytes, has_reference, parameter_bytes

CHECK = "host memory"
PROCESS_BYTES = 0.8 * GIB
FIXED_PROCESSES, PROCESSES_PER_RANK = 5, 3
"""Driver, task runner, replay buffer's controller, Ray's own; FSDP worker, server, engine core."""
STORAGE_UNITS = "transfer_queue.backend.SimpleStorage.num_data_storage_units"
PIXEL_VALUE_BYTES, DECODED_BYTES = 24, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """Bytes on one node."""

    processes: float
    state: float
    checkpoint: float
    images_at_most: float

    @property
    def without_images(self) -> float:
        return self.processes + self.state + self.checkpoint

    def __str__(self) -> str:
        checkpoint = f"a checkpoint {gib(self.checkpoint)}, " if self.checkpoint else ""
        return (
            f"processes {gib(self.processes)}, model and optimizer {gib(self.state)}, "
            f"{checkpoint}images at most {gib(self.images_at_most)}"
        )


def check_host_memory(config: DictConfig) -> Iterator[Finding]:
    need, have = estimate(config), available_memory()
    needed, most = need.without_images, need.without_images + need.images_at_most
    found = f"{gib(have.num_bytes)} available ({have.source}); a node takes {need}"
    if needed > have.num_bytes:
        yield error(
            CHECK,
            f"{found}: {gib(needed)} without any image",
            "fewer trainer.n_gpus_per_node or worker processes "
            "(actor_rollout_ref.rollout.agent.num_workers, reward.num_workers), no optimizer "
            "off-load, or a machine with more memory",
        )
    elif most > have.num_bytes:
        yield warning(
            CHECK,
            f"{found}: {gib(most)} if every image is as large as data.max_pixels and "
            "data.max_prompt_length allow",
            "lower data.max_pixels or data.train_batch_size if Ray kills workers for memory",
        )
    else:
        yield ok(CHECK, found)


def estimate(config: DictConfig) -> HostMemory:
    return HostMemory(
        processes=PROCESS_BYTES * num_processes(config),
        state=state_bytes(config),
        checkpoint=checkpoint_copies(config),
        images_at_most=image_bytes(config),
    )


def num_processes(config: DictConfig) -> int:
    return (
        FIXED_PROCESSES
        + PROCESSES_PER_RANK * config.trainer.n_gpus_per_node
        + config.actor_rollout_ref.rollout.agent.num_workers
        + config.reward.num_workers
        + (OmegaConf.select(config, STORAGE_UNITS) or 0)
    )


def state_bytes(config: DictConfig) -> float:
    """Model, gradients and optimizer held by the host; 0 where the model's size is not known."""
    size = model_size(config)
    if size is None:
        return 0.0
    policy = config.actor_rollout_ref
    actor, reference = policy.actor.fsdp_config, policy.ref.fsdp_config
    whole, kept = size.num_parameters * parameter_bytes(config), has_reference(config)
    if config.trainer.device == "cpu":
        engine = size.num_parameters * dtype_bytes(policy.rollout.dtype)
        cache = OmegaConf.select(policy, "rollout.engine_kwargs.vllm.kv_cache_memory_bytes") or GIB
        return (4 + kept) * whole + config.trainer.n_gpus_per_node * (engine + cache)
    here = whole / config.trainer.nnodes
    off_loaded_reference = kept and reference.param_offload
    return here * (actor.param_offload + 2 * actor.optimizer_offload + off_loaded_reference)


def checkpoint_copies(config: DictConfig) -> float:
    """Host memory that a checkpoint takes while it is written."""
    size = model_size(config)
    if size is None or config.trainer.save_freq <= 0:
        return 0.0
    actor, saved = config.actor_rollout_ref.actor, 0.0
    whole, contents = size.num_parameters * parameter_bytes(config), actor.checkpoint.save_contents
    if actor.strategy == "fsdp" and config.trainer.device != "cpu":
        saved = whole * (3 if "optimizer" in contents else 1) / config.trainer.nnodes
    return saved + ("hf_model" in contents) * whole


def image_bytes(config: DictConfig) -> float:
    cut = image_cut(model_folder(config))
    most = config.data.max_prompt_length * cut.pixels_per_token
    pixels = min(config.data.max_pixels or cut.max_pixels or most, most)
    a_prompt = config.actor_rollout_ref.rollout.n * PIXEL_VALUE_BYTES + DECODED_BYTES
    return config.data.train_batch_size * pixels * a_prompt / config.trainer.nnodes
