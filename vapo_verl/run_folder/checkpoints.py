"""Checkpoints of a run folder: which are complete, and whether their files are as written.

A checkpoint ``global_step_N`` is complete once it holds ``complete.json``, which is written after
all its files, the step's line in ``metrics.jsonl`` and its sampled rollouts are on the disk::

    {"step": N, "algorithm": "xxh3_128", "files": {"actor/x.pt": {"size": .., "checksum": ".."}}}

A run resumes from the newest complete checkpoint whose files still have these sizes and checksums.
veRL's pointer ``latest_checkpointed_iteration.txt`` follows. A process killed at any moment leaves
the older checkpoint usable. Older releases wrote the step only: such a checkpoint is accepted
unverified.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vapo_verl.files import atomic_write_text, sync_folder
from vapo_verl.run_folder import RunFolderError
from vapo_verl.run_folder.checksums import ALGORITHM, file_checksum

MARKER = "complete.json"
DAMAGED_MARKER = "damaged.json"
"""Name of the marker of a checkpoint that failed its verification: it is no longer complete."""
POINTER = "latest_checkpointed_iteration.txt"
BEST_FILE = "best_checkpoint.json"
"""Step, metric and value of the best checkpoint, where one is kept by a metric."""
NUM_THREADS = 8
_FOLDER = re.compile(r"global_step_(\d+)")


class CheckpointError(RunFolderError):
    """A checkpoint cannot be written or none can be read; the message says where and what to do."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file as it was written."""

    size: int
    """Bytes."""
    checksum: str
    """By :data:`ALGORITHM`, in hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A file of a checkpoint that is not as it was written."""

    path: str
    """Relative to the checkpoint's folder."""
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where a run resumes."""

    step: int | None
    """Step of the newest intact checkpoint; None if there is no complete checkpoint at all."""
    verified: bool = True
    """False if its marker is from an older release and holds no checksums."""
    damaged: Mapping[int, list[Problem]] = field(default_factory=dict)
    """Newer complete checkpoints that failed their verification, by step."""


@dataclass(frozen=True, slots=True)
class Scores:
    """A metric that selects the best checkpoint: the one with its highest value."""

    metric: str
    by_step: Mapping[int, float]
    """Of the steps that have a value."""


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    return run_dir / f"global_step_{step}"


def step_of(checkpoint: Path) -> int:
    """The step of a folder that :func:`checkpoint_folder` names."""
    return int(checkpoint.name.rpartition("_")[2])


def latest_complete(run_dir: Path) -> int | None:
    """Step of the newest complete checkpoint; None when there is none."""
    return max(complete_steps(run_dir), default=None)


def complete_steps(run_dir: Path) -> list[int]:
    """Steps of all complete checkpoints, oldest first."""
    return sorted(step for step in _steps(run_dir) if _is_complete(run_dir, step))


def incomplete(run_dir: Path) -> list[Path]:
    """Folders that a killed process left half written, oldest first."""
    steps = sorted(step for step in _steps(run_dir) if not _is_complete(run_dir, step))
    return [checkpoint_folder(run_dir, step) for step in steps]


def verify_checkpoint(folder: Path, *, sizes_only: bool = False) -> list[Problem]:
    """Compare the files of a complete checkpoint with its marker, in parallel.

    Files that the marker does not name are ignored. A marker of an older release names none, and
    has no problems (:func:`has_checksums`).

    Args:
        sizes_only: skip the checksums: no file is read.

    Returns:
        One problem per file that is missing, unreadable, or has another size or content; empty
        where the checkpoint is intact.
    """
    try:
        files = _recorded_files(folder)
    except (OSError, ValueError) as error:
        return [Problem(MARKER, "the marker of this checkpoint", str(error))]

    def check(item: tuple[str, FileRecord]) -> Problem | None:
        return _check_file(folder, *item, sizes_only=sizes_only)

    by_size = sorted(files.items(), key=lambda item: -item[1].size)  # the longest first
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        problems = [problem for problem in pool.map(check, by_size) if problem is not None]
    return sorted(problems, key=lambda problem: problem.path)


def has_checksums(folder: Path) -> bool:
    """Whether the marker of a complete checkpoint names files; those of older releases do not."""
    try:
        return bool(_recorded_files(folder))
    except (OSError, ValueError):
        return True  # damaged: `verify_checkpoint` says so


def resume_point(run_dir: Path, *, sizes_only: bool = False) -> ResumePoint:
    """The newest complete checkpoint that is intact by its sizes, or also by its checksums.

    Raises:
        CheckpointError: there are complete checkpoints, and all of them are damaged.
    """
    damaged: dict[int, list[Problem]] = {}
    for step in reversed(complete_steps(run_dir)):
        folder = checkpoint_folder(run_dir, step)
        problems = verify_checkpoint(folder, sizes_only=sizes_only)
        if not problems:
            return ResumePoint(step, verified=has_checksums(folder), damaged=damaged)
        damaged[step] = problems
    if damaged:
        raise CheckpointError(
            "\n".join(
                damage_message(checkpoint_folder(run_dir, step), problems)
                for step, problems in damaged.items()
            )
            + "\nNo intact checkpoint is left. Restore these files from a copy, or start again: "
            "trainer.default_local_dir=ANOTHER_FOLDER."
        )
    return ResumePoint(None)


def prepare_resume(run_dir: Path, say: Callable[[str], None]) -> ResumePoint:
    """Choose the checkpoint to resume from, for all ranks, and point veRL to it.

    Damaged checkpoints are set aside. `say` is called at once: the files are read while workers
    start, and an error is raised only where the result is asked for.

    Raises:
        CheckpointError: all complete checkpoints are damaged.
    """
    for folder in incomplete(run_dir):
        say(f"{folder} is incomplete and not used")
    try:
        point = resume_point(run_dir)
    except CheckpointError as error:
        say(f"WARNING: {error.message}")
        raise
    for step, problems in point.damaged.items():
        damage = damage_message(checkpoint_folder(run_dir, step), problems)
        say(f"WARNING: {damage}; it is set aside, resuming from step {point.step}")
        set_aside(run_dir, step)
    point_to(run_dir, point.step)
    if not point.verified:
        say(f"the checkpoint of step {point.step} has no checksums: used unverified")
    return point


def require_intact(folder: Path, *, sizes_only: bool = False) -> None:
    """Verify a checkpoint that the user chose; one without a marker, from other programs, passes.

    Args:
        sizes_only: skip the checksums: no file is read.

    Raises:
        CheckpointError: it is damaged, or was set aside because it was.
    """
    is_complete = (folder / MARKER).exists()
    if not is_complete and (folder / DAMAGED_MARKER).exists():
        raise CheckpointError(
            f"{folder} is damaged: an earlier start found files that were not as written, and set "
            f"it aside. Restore them from a copy and rename {DAMAGED_MARKER} to {MARKER}, or "
            "choose another checkpoint."
        )
    if is_complete and (problems := verify_checkpoint(folder, sizes_only=sizes_only)):
        raise CheckpointError(
            f"{damage_message(folder, problems)}. Restore it from a copy, or choose another one."
        )


def damage_message(folder: Path, problems: Iterable[Problem]) -> str:
    """What is wrong with a checkpoint, in a line."""
    return f"{folder} is damaged: {'; '.join(map(str, problems))}"


def set_aside(run_dir: Path, step: int) -> None:
    """Make a damaged checkpoint incomplete: retention does not count it, no run resumes from it."""
    folder = checkpoint_folder(run_dir, step)
    with suppress(FileNotFoundError):
        os.replace(folder / MARKER, folder / DAMAGED_MARKER)


def file_records(
    folder: Path, chosen: Callable[[str], bool] = lambda name: True
) -> dict[str, FileRecord]:
    """Sync the files of `folder` to the disk and record them, in parallel.

    Call it in the process that wrote them: it reads them back from the page cache.

    Args:
        chosen: selects files by their paths relative to `folder`.

    Returns:
        Records by path relative to `folder`.
    """
    names = [name for path in _files(folder) if chosen(name := _relative(path, folder))]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _record(folder / name), names), strict=True))


def discard(run_dir: Path, step: int) -> None:
    """Remove the checkpoint of `step`, complete or not; its marker goes first."""
    folder = checkpoint_folder(run_dir, step)
    (folder / MARKER).unlink(missing_ok=True)  # a kill from here on leaves an incomplete one
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def writing(
    run_dir: Path, step: int, keep: int | None = None, best_by: Scores | None = None
) -> Iterator[dict[str, FileRecord]]:
    """Context that writes the files of the checkpoint of `step`; :func:`declare_complete` follows.

    The folder of an earlier attempt is removed first. Old checkpoints are removed before the write,
    to make room, the newest one not before :func:`declare_complete`.

    Args:
        keep: number of complete checkpoints to keep, including this one; None keeps all.
        best_by: scores whose best checkpoint is kept too, see :func:`best_complete`.

    Yields:
        Records by path relative to the checkpoint. The caller may add those that the writing
        processes made; afterwards it holds all files, synced to the disk.

    Raises:
        CheckpointError: it could not be written; the newest complete checkpoint is as it was.
    """
    records: dict[str, FileRecord] = {}
    discard(run_dir, step)
    if keep != 1:
        remove_old(run_dir, step, keep, best_by)
    with _named_failure(run_dir, step):
        yield records
        folder = checkpoint_folder(run_dir, step)
        sizes = {_relative(path, folder): path.stat().st_size for path in _files(folder)}
        for name in records.keys() - sizes:  # on a disk of another node: not known here
            del records[name]
        for name, record in records.items():
            if record.size != sizes[name]:
                raise OSError(f"{name} has {sizes[name]} bytes, and its rank wrote {record.size}")
        records.update(file_records(folder, lambda name: name not in records))
        point_to(run_dir, latest_complete(run_dir))  # veRL points to the new one already


def declare_complete(
    run_dir: Path,
    step: int,
    files: Mapping[str, FileRecord],
    keep: int | None = None,
    best_by: Scores | None = None,
) -> None:
    """Declare a checkpoint complete whose `files` are written, point to it, then remove old ones.

    With `best_by`, :data:`BEST_FILE` names the best checkpoint by these scores.

    Raises:
        CheckpointError: the marker could not be written; older checkpoints are as they were.
    """
    with _named_failure(run_dir, step):
        _write_marker(run_dir, step, files)
        if best_by is not None:
            name_best(run_dir, best_by)
    remove_old(run_dir, step, keep, best_by)


def name_best(run_dir: Path, scores: Scores) -> None:
    """Write :data:`BEST_FILE`, if a complete checkpoint has a score."""
    if (best := best_complete(run_dir, scores)) is not None:
        content = {"step": best, "metric": scores.metric, "value": scores.by_step[best]}
        atomic_write_text(run_dir / BEST_FILE, json.dumps(content) + "\n")


def best_complete(run_dir: Path, scores: Scores) -> int | None:
    """Step of the complete checkpoint with the highest score, the newest of equal ones.

    None where the step of no complete checkpoint has a score.
    """
    known = [step for step in complete_steps(run_dir) if step in scores.by_step]
    return max(known, key=lambda step: (scores.by_step[step], step), default=None)


def remove_old(run_dir: Path, step: int, keep: int | None, best_by: Scores | None = None) -> None:
    """Keep `keep` complete checkpoints (`step` and the latest before it); remove all older ones.

    With `best_by`, the best one by :func:`best_complete` is kept too. A checkpoint whose files do
    not have the recorded sizes does not count as complete here. If none is left, nothing is
    removed. Does nothing if `keep` is None or not positive, either.
    """
    if keep is None or keep < 1:
        return
    complete = [other for other in complete_steps(run_dir) if other <= step]
    good = [
        other
        for other in complete
        if not verify_checkpoint(checkpoint_folder(run_dir, other), sizes_only=True)
    ]
    if complete and not good:
        return
    room = keep if step in complete else keep - 1  # the one that is about to be written
    kept = {step, *good[len(good) - min(room, len(good)) :]}
    if best_by is not None and (best := best_complete(run_dir, best_by)) is not None:
        kept.add(best)
    for other in set(_steps(run_dir)) - kept:
        if other < step:
            discard(run_dir, other)


def point_to(run_dir: Path, step: int | None) -> None:
    """Make veRL resume from `step`, or from scratch when it is None."""
    if step is None:
        (run_dir / POINTER).unlink(missing_ok=True)
    else:
        atomic_write_text(run_dir / POINTER, str(step))


@contextmanager
def _named_failure(run_dir: Path, step: int) -> Iterator[None]:
    """Turn a failure to write the checkpoint of `step` into one message, and remove its files."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save has RuntimeError for a full disk
        free = shutil.disk_usage(run_dir).free / 2**30
        discard(run_dir, step)
        newest = latest_complete(run_dir)
        with suppress(OSError):
            point_to(run_dir, newest)
        reason = str(getattr(error, "cause", error)).partition("\n")[0]  # not Ray's traceback
        kept = "There is no older one" if newest is None else f"That of step {newest} is complete"
        raise CheckpointError(
            f"could not write the checkpoint {checkpoint_folder(run_dir, step)}: {reason} "
            f"(free space there: {free:.2f} GiB). {kept}. If the disk is full, free some space; a "
            "run needs it for two checkpoints (trainer.max_actor_ckpt_to_keep=2). The same command "
            "resumes (with trainer.resume_mode=auto, the default)."
        ) from error


def _write_marker(run_dir: Path, step: int, records: Mapping[str, FileRecord]) -> None:
    folder = checkpoint_folder(run_dir, step)
    for path in filter(Path.is_dir, folder.rglob("*")):
        sync_folder(path)
    files = {name: asdict(record) for name, record in sorted(records.items())}
    content = {"step": step, "algorithm": ALGORITHM, "files": files}
    (folder / DAMAGED_MARKER).unlink(missing_ok=True)
    atomic_write_text(folder / MARKER, json.dumps(content, indent=1) + "\n")
    sync_folder(folder)
    sync_folder(run_dir)  # the name of a new folder is an entry of the one above it
    point_to(run_dir, step)


def _recorded_files(folder: Path) -> dict[str, FileRecord]:
    """Files that the marker names, by relative path; empty for a marker of an older release.

    Raises:
        ValueError: it is not the marker of this checkpoint; the message says how it differs.
    """
    try:
        content = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("step"), int):
        raise ValueError("no step")
    if (named := _FOLDER.fullmatch(folder.name)) and int(named[1]) != content["step"]:
        raise ValueError(f"that of step {content['step']}")
    files = content.get("files", {})
    if not isinstance(files, dict):
        raise ValueError("no table of files")
    if not files:
        return {}
    if content.get("algorithm") != ALGORITHM:
        raise ValueError(f"checksums by {content.get('algorithm')!r}, not by {ALGORITHM}")
    return {name: _as_record(name, entry) for name, entry in files.items()}


def _as_record(name: str, entry: Any) -> FileRecord:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the path {name!r}, which leaves the checkpoint")
    match entry:
        case {"size": int(size), "checksum": str(checksum)}:
            return FileRecord(size, checksum)
    raise ValueError(f"no size and checksum of {name}")


def _check_file(folder: Path, name: str, record: FileRecord, *, sizes_only: bool) -> Problem | None:
    path, expected = folder / name, f"{record.size} bytes"
    try:
        size = path.stat().st_size
        if not path.is_file():
            return Problem(name, expected, "no regular file")
        if size != record.size:
            return Problem(name, expected, f"{size} bytes")
        if sizes_only or (checksum := file_checksum(path)) == record.checksum:
            return None
    except FileNotFoundError:
        return Problem(name, expected, "no file")
    except OSError as error:
        return Problem(name, expected, str(error))
    return Problem(name, f"{ALGORITHM} {record.checksum}", checksum)


def _record(path: Path) -> FileRecord:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        return FileRecord(os.fstat(descriptor).st_size, file_checksum(path))
    finally:
        os.close(descriptor)


def _files(folder: Path) -> list[Path]:
    """All files of a checkpoint but its marker."""
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and path not in (folder / MARKER, folder / DAMAGED_MARKER)
    ]


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _steps(run_dir: Path) -> list[int]:
    names = (path.name for path in run_dir.glob("global_step_*") if path.is_dir())
    return [int(match[1]) for name in names if (match := _FOLDER.fullmatch(name))]


def _is_complete(run_dir: Path, step: int) -> bool:
    return (checkpoint_folder(run_dir, step) / MARKER).is_file()
