"""Check the user's limits: open files, processes, locked memory."""

import resource
from collections.abc import Iterator

from omegaconf import DictConfig

from vapo_verl.doctor.control_groups import group_limits
from vapo_verl.doctor.findings import Finding, error, gib, ok, warning

CHECK = "limits"
LEAST_FILES, ENOUGH_FILES = 1024, 8192
"""Each Ray worker holds about 50 sockets and files; vLLM's shards and data add to that."""
LEAST_PROCESSES, ENOUGH_PROCESSES = 1024, 8192
"""Threads count: a process that imports torch and vLLM has 50 to 100."""


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
