"""Check GPU and host memory of a run, phase by phase, and the limits of user and control group."""

import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from omegaconf import DictConfig

from vapo_verl.doctor.accelerator import torch_cuda
from vapo_verl.doctor.findings import GIB, Finding, error, gib, ok, warning
from vapo_verl.doctor.memory_phases import Phase, kv_cache_bytes, kv_token_bytes, memory_phases
from vapo_verl.doctor.memory_settings import MemorySettings
from vapo_verl.doctor.model_size import ModelShape, model_shape, model_size
from vapo_verl.doctor.ray_cluster import cluster_of

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
    "log_prob_micro_batch_size_per_gpu (with LoRA those of actor_rollout_ref.rollout)",
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
CHECK = "limits"
LEAST_FILES, ENOUGH_FILES = 1024, 8192
"""Each Ray worker holds about 50 sockets and files; vLLM's shards and data add to that."""
LEAST_PROCESSES, ENOUGH_PROCESSES = 1024, 8192
"""Threads count: a process that imports torch and vLLM has 50 to 100."""
CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")
FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, usage, and the key of the page cache in memory.stat: of version 2, of version 1."""


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
    elsewhere = settings.engine_gpus_per_node > 0 and cluster_of(config) is not None
    yield from judge_host(phases, engines_elsewhere=elsewhere)
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


def judge_host(phases: Sequence[Phase], *, engines_elsewhere: bool = False) -> Iterator[Finding]:
    """Compare the memory of the node or its control group with the largest phase.

    Args:
        engines_elsewhere: engines with GPUs of their own may be on another node of a cluster: the
            phases, which count them here, decide nothing.
    """
    have = available_memory()
    least = max(phases, key=lambda phase: phase.least_host_bytes)
    most = max(phases, key=lambda phase: phase.host_bytes)
    found = f"{gib(have.num_bytes)} available ({have.source}); a node takes "
    if least.least_host_bytes > have.num_bytes:
        found += f"{gib(least.least_host_bytes)} in {least.name} without any image"
        if engines_elsewhere:
            found += ", if it has engines of the rollout, too"
        say = warning if engines_elsewhere else error
        yield say(HOST, f"{found} ({largest(least.host)})", HOST_FIX)
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


def check_limits(config: DictConfig | None) -> Iterator[Finding]:
    """Check the soft limits of this shell, which Ray's processes inherit."""
    yield _judged(
        "open files",
        resource.getrlimit(resource.RLIMIT_NOFILE),
        LEAST_FILES,
        ENOUGH_FILES,
        "ulimit -n {wanted} (beyond the hard limit: nofile in /etc/security/limits.conf, "
        "LimitNOFILE of the service, or docker --ulimit nofile)",
    )
    yield _judged(
        "processes and threads",
        resource.getrlimit(resource.RLIMIT_NPROC),
        LEAST_PROCESSES,
        ENOUGH_PROCESSES,
        "ulimit -u {wanted} (beyond the hard limit: nproc in /etc/security/limits.conf)",
    )
    yield from _process_group()
    if config is not None and config.trainer.device != "cpu" and config.trainer.nnodes > 1:
        yield from _locked_memory()


def _judged(what: str, limits: tuple[int, int], least: int, enough: int, fix: str) -> Finding:
    soft, hard = limits
    found = f"{what}: soft limit {_shown(soft)}, hard limit {_shown(hard)}"
    if soft == resource.RLIM_INFINITY or soft >= enough:
        return ok(CHECK, found)
    say = error if soft < least else warning
    return say(CHECK, f"{found}; a run wants {enough}", fix.format(wanted=enough))


def _process_group() -> Iterator[Finding]:
    """Check `docker --pids-limit` or TasksMax of a service; both count all threads."""
    for group in group_limits("pids", "pids.max", "pids.current"):
        left = group.limit - group.used
        if left < ENOUGH_PROCESSES:
            say = error if left < LEAST_PROCESSES else warning
            yield say(
                CHECK,
                f"{group.folder / 'pids.max'}={group.limit} leaves {left} processes and threads; "
                f"a run wants {ENOUGH_PROCESSES}",
                "docker run --pids-limit=-1, or TasksMax=infinity of the service or the user slice",
            )


def _locked_memory() -> Iterator[Finding]:
    """Check the limit of locked memory, which NCCL over InfiniBand needs for its buffers."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        yield ok(CHECK, "locked memory: unlimited")
    else:
        yield warning(
            CHECK,
            f"locked memory: {gib(soft)} with trainer.nnodes above 1; NCCL over InfiniBand needs "
            "more and says only 'unhandled system error'",
            "ulimit -l unlimited (memlock in limits.conf, docker --ulimit memlock=-1)",
        )


def _shown(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLimit:
    """A limit and its current usage."""

    folder: Path
    limit: int
    used: int


def group_limits(
    controller: str,
    limit_file: str,
    usage_file: str,
    cgroups: Path | None = None,
    own_group: Path | None = None,
) -> Iterator[GroupLimit]:
    """Limits of one kind, from this process's group up to the mounted root."""
    for folder in _folders(controller, cgroups or CGROUPS, own_group or OWN_GROUP):
        limit, used = _number(folder / limit_file), _number(folder / usage_file)
        if limit is not None and used is not None:
            yield GroupLimit(folder=folder, limit=limit, used=used)


def statistic(file: Path, key: str) -> int:
    """A value from a file of `key value` lines; 0 if the key is missing."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key} ")), 0)


def _folders(controller: str, cgroups: Path, own_group: Path) -> Iterator[Path]:
    """Version 2 is the line without a controller's name, version 1 the one with `controller`."""
    lines = own_group.read_text().splitlines() if own_group.is_file() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", controller):
            root = cgroups / controllers
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):
                yield folder
                if folder == root:
                    break


def _number(file: Path) -> int | None:
    """The number in a file; None for `max` or a missing file."""
    text = file.read_text().strip() if file.is_file() else ""
    return int(text) if text.isdigit() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailableMemory:
    """Bytes that can still be allocated, and the source of the limit."""

    num_bytes: float
    source: str


def available_memory(cgroups: Path | None = None, own_group: Path | None = None) -> AvailableMemory:
    """The machine's available memory, or that of the tightest control group above this process."""
    machine = AvailableMemory(num_bytes=psutil.virtual_memory().available, source="the machine")
    return min([machine, *_groups(cgroups, own_group)], key=lambda memory: memory.num_bytes)


def _groups(cgroups: Path | None, own_group: Path | None) -> Iterator[AvailableMemory]:
    """Available memory per group. Page cache is reclaimable, so it does not count as used."""
    for limit_file, usage_file, cache_key in FILES:
        for group in group_limits("memory", limit_file, usage_file, cgroups, own_group):
            cache = statistic(group.folder / "memory.stat", cache_key)
            yield AvailableMemory(
                num_bytes=max(group.limit - group.used + cache, 0),
                source=f"control group limit {group.folder}",
            )
