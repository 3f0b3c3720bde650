"""Limits of our control group: containers, Slurm jobs and services set them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")


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
