"""Limits of this process's control groups, as set by containers, Slurm jobs and services."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")
FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, usage, and the key of the page cache in memory.stat: of version 2, of version 1."""


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
