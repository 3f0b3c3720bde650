"""Limits of the user and of control groups: open files, processes, locked memory, memory."""

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from omegaconf import DictConfig

from vapo_verl.doctor.findings import Finding, error, gib, ok, warning

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
    """Check locked memory, as which NCCL over InfiniBand registers its buffers."""
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
