"""Memory that this process and its children may still take: the machine's, or a control group's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from vapo_verl.doctor.control_groups import group_limits, statistic

FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, usage, and the key of the page cache in memory.stat: of version 2, of version 1."""


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
