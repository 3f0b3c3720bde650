"""Check GPU and host memory of a run, phase by phase."""

from collections.abc import Iterator, Mapping, Sequence

from omegaconf import DictConfig

from vapo_verl.doctor.accelerator import torch_cuda
from vapo_verl.doctor.findings import GIB, Finding, error, gib, ok, warning
from vapo_verl.doctor.limits import available_memory
from vapo_verl.doctor.memory_phases import Phase, kv_cache_bytes, kv_token_bytes, memory_phases
from vapo_verl.doctor.memory_settings import MemorySettings
from vapo_verl.doctor.model_size import ModelShape, model_shape, model_size

GPU, HOST = "gpu memory", "host memory"
ASSUMED_DEVICE_BYTES = 79.6 * GIB
"""An H100 or A100 of 80 GB; used when this machine has no GPU."""
GPU_MARGIN_BYTES = 8 * GIB
"""For fragmentation, kernels' workspaces and everything else outside the formulas."""
SHOWN_PARTS = 3
GPU_FIXES: Mapping[str, str] = {
    "rollout": "lower actor_rollout_ref.rollout.gpu_memory_utilization, "
    "actor_rollout_ref.actor.fsdp_config.optimizer_offload=true, or more GPUs",
    "old log prob": "lower actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu or "
    "log_prob_micro_batch_size_per_gpu, or "
    "actor_rollout_ref.actor.entropy_from_logits_with_chunking=true",
    "ref log prob": "lower actor_rollout_ref.ref.log_prob_max_token_len_per_gpu or "
    "log_prob_micro_batch_size_per_gpu",
    "update": "lower actor_rollout_ref.actor.ppo_max_token_len_per_gpu or "
    "ppo_micro_batch_size_per_gpu, actor_rollout_ref.actor.fsdp_config.offload_policy=true, or "
    "more GPUs",
    "weight sync": "lower actor_rollout_ref.rollout.checkpoint_engine."
    "update_weights_bucket_megabytes, or more GPUs",
}
OTHER_GPU_FIX = "actor_rollout_ref.actor.fsdp_config.offload_policy=true, or more GPUs"
HOST_FIX = (
    "fewer trainer.n_gpus_per_node or worker processes "
    "(actor_rollout_ref.rollout.agent.num_workers, reward.num_workers), "
    "no off-load of optimizer or parameters, or a machine with more memory"
)
IMAGES_FIX = "lower data.max_pixels or data.train_batch_size if Ray kills workers for memory"


def check_memory(config: DictConfig) -> Iterator[Finding]:
    """The table of all phases, then the phases that do not fit."""
    shape, size = model_shape(config), model_size(config)
    if shape is None or size is None:
        name = config.actor_rollout_ref.model.path
        found = f"the size of actor_rollout_ref.model.path={name} is not known here"
        yield warning(HOST, found, f"hf download {name}")
        return
    settings, here = MemorySettings.read(config), 0.0
    if settings.on_gpu:
        here = torch_cuda().memory_bytes
    device = here or ASSUMED_DEVICE_BYTES
    phases = memory_phases(shape, settings, device_bytes=device, num_parameters=size.num_parameters)
    yield ok("memory", f"{size}\n{table(phases, device_bytes=device)}")
    yield from judge_host(phases)
    if settings.on_gpu:
        yield from judge_gpu(phases, device_bytes=device, assumed=not here)
        yield from judge_engine(shape, settings, device, size.num_parameters)


def table(phases: Sequence[Phase], *, device_bytes: float) -> str:
    """Lines of `phase | GPU GiB per rank | of 79.6 | host GiB`, the last per node."""
    of_device = f"of {device_bytes / GIB:.1f}"
    rows = [("phase", "GPU GiB per rank", of_device, "host GiB")]
    for phase in phases:
        gpu, fraction = "-", "-"
        if phase.gpu:
            gpu, fraction = f"{phase.gpu_bytes / GIB:.1f}", f"{phase.gpu_bytes / device_bytes:.0%}"
        rows.append((phase.name, gpu, fraction, f"{phase.host_bytes / GIB:.1f}"))
    return "\n".join(f"  {name:<14} | {g:>16} | {f:>7} | {h:>8}" for name, g, f, h in rows)


def judge_gpu(phases: Sequence[Phase], *, device_bytes: float, assumed: bool) -> Iterator[Finding]:
    """A finding for each phase that does not fit, or one for the largest.

    Args:
        assumed: this machine has no GPU; a phase over 80 GB is a warning.
    """
    device = f"the GPU has {gib(device_bytes)}"
    if assumed:
        device = f"no GPU here to compare with, one of 80 GB has {gib(device_bytes)}"
    good = True
    for phase in phases:
        if phase.gpu_bytes <= device_bytes - GPU_MARGIN_BYTES:
            continue
        good = False
        say = error if phase.gpu_bytes > device_bytes and not assumed else warning
        found = (
            f"{phase.name}: a rank takes {gib(phase.gpu_bytes)} ({largest(phase.gpu)}); {device}, "
            f"of which {gib(GPU_MARGIN_BYTES)} should stay free"
        )
        yield say(GPU, found, GPU_FIXES.get(phase.name, OTHER_GPU_FIX))
    if good:
        top = max(phases, key=lambda phase: phase.gpu_bytes)
        yield ok(GPU, f"a rank takes {gib(top.gpu_bytes)} at most, in {top.name}; {device}")


def judge_engine(
    shape: ModelShape, settings: MemorySettings, device_bytes: float, num_parameters: float
) -> Iterator[Finding]:
    """Check the KV cache: vLLM needs room for one sequence of max_model_len."""
    left = kv_cache_bytes(shape, settings, device_bytes=device_bytes, num_parameters=num_parameters)
    num_tokens = max(int(left / kv_token_bytes(shape, settings)), 0)
    weights = num_parameters * settings.engine_bytes / settings.tensor_parallel
    found = (
        f"the engine's fraction of the GPU is {gib(settings.utilization * device_bytes)}, its "
        f"weights take {gib(weights)}"
    )
    if num_tokens < settings.max_model_len:
        room = (
            f"room for a KV cache of {num_tokens} tokens"
            if num_tokens
            else "no room for a KV cache"
        )
        yield error(
            GPU,
            f"{found}: {room}, max_model_len={settings.max_model_len}",
            "raise actor_rollout_ref.rollout.gpu_memory_utilization or tensor_model_parallel_size",
        )
    else:
        yield ok(GPU, f"{found}: {gib(left)} or {num_tokens} tokens of KV cache")


def judge_host(phases: Sequence[Phase]) -> Iterator[Finding]:
    """Compare the memory of the node or its control group with the largest phase."""
    have = available_memory()
    least = max(phases, key=lambda phase: phase.least_host_bytes)
    most = max(phases, key=lambda phase: phase.host_bytes)
    found = f"{gib(have.num_bytes)} available ({have.source}); a node takes "
    if least.least_host_bytes > have.num_bytes:
        found += f"{gib(least.least_host_bytes)} in {least.name} without any image"
        yield error(HOST, f"{found} ({largest(least.host)})", HOST_FIX)
    elif most.host_bytes > have.num_bytes:
        found += (
            f"{gib(most.host_bytes)} in {most.name} if images and sequences are as large as "
            "data.max_pixels, max_prompt_length and max_response_length allow "
            f"({largest(most.host)})"
        )
        yield warning(HOST, found, IMAGES_FIX)
    else:
        yield ok(HOST, f"{found}{gib(most.host_bytes)} at most, in {most.name}")


def largest(parts: Mapping[str, float]) -> str:
    """The largest parts, formatted."""
    order = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {gib(size)}" for name, size in order[:SHOWN_PARTS])
