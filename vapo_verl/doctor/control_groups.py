"""Limits of our control group: containers, Slurm jobs and services set them."""

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
    """A limit that is set, and what is used of it."""

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
    """Limits of one kind, from our own group up to the root that is mounted here."""
    for folder in _folders(controller, cgroups or CGROUPS, own_group or OWN_GROUP):
        limit, used = _number(folder / limit_file), _number(folder / usage_file)
        if limit is not None and used is not None:
            yield GroupLimit(folder=folder, limit=limit, used=used)


def statistic(file: Path, key: str) -> int:
    """A value of a file of `key value` lines; 0 where it is not there."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key} ")), 0)


def _folders(controller: str, cgroups: Path, own_group: Path) -> Iterator[Path]:
    """Version 2 is the line without a controller's name, version 1 the one with ours."""
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
    """The file's number; None for `max` and where there is no such file."""
    text = file.read_text().strip() if file.is_file() else ""
    return int(text) if text.isdigit() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailableMemory:
    """Bytes that can still be taken, and who limits them."""

    num_bytes: float
    source: str


def available_memory(cgroups: Path | None = None, own_group: Path | None = None) -> AvailableMemory:
    """The machine's available memory, or what the tightest control group above us leaves."""
    machine = AvailableMemory(num_bytes=psutil.virtual_memory().available, source="the machine")
    return min([machine, *_groups(cgroups, own_group)], key=lambda memory: memory.num_bytes)


def _groups(cgroups: Path | None, own_group: Path | None) -> Iterator[AvailableMemory]:
    """Page cache counts as used in a group, but is given back: it is not counted here."""
    for limit_file, usage_file, cache_key in FILES:
        for group in group_limits("memory", limit_file, usage_file, cgroups, own_group):
            cache = statistic(group.folder / "memory.stat", cache_key)
            yield AvailableMemory(
                num_bytes=max(group.limit - group.used + cache, 0),
                source=f"control group limit {group.folder}",
            )
