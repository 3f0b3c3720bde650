"""Claims on disk: folders of append-only JSON-lines shards that survive a kill at any moment.

A process writes its own new shard, one flushed and fsynced line per finished image. What a kill
leaves is at worst an unfinished last line of a shard; its image counts as not stored.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

from vapo_verl.claims.shards.lock import FolderLock
from vapo_verl.claims.shards.record import ClaimRecord, Usage, Verdict
from vapo_verl.data.errors import FileError

__all__ = ["ClaimRecord", "ShardWriter", "Usage", "Verdict", "read_records", "shard_paths"]

_DAMAGED = "restore the shard from a copy, or delete this line: its image is then asked for again"


def shard_paths(folder: Path) -> list[Path]:
    """The shards of a folder in the order they were begun; none when there is no such folder."""
    return sorted(folder.glob("shard-*.jsonl"))


def read_records(folder: Path) -> Iterator[ClaimRecord]:
    """Stream the records of all shards, in the order they were written.

    Keys are unique: a stored image is not asked for again. A folder without shards has no records.

    Raises:
        FileError: a line is no record; the message names file and line. A last line without its
            newline is what a kill leaves, and is passed over.
    """
    for path in shard_paths(folder):
        yield from (record for _, record in read_shard(path))


def read_shard(path: Path) -> Iterator[tuple[int, ClaimRecord]]:
    """(byte offset of its line, record) of every record of one shard; errors as `read_records`."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield offset, ClaimRecord.from_json(line)
            except (ValueError, TypeError, KeyError) as error:
                raise FileError(f"{path}:{number}: not a record ({error}); {_DAMAGED}") from error
            offset += len(line)


class ShardWriter:
    """Appends records to a new shard of `folder`, which it makes and locks while it is open.

    The shard begins with the first record, so that a run with nothing to do leaves no file.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._lock = FolderLock(folder)
        self._file: IO[str] | None = None

    def __enter__(self) -> "ShardWriter":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.release()

    def write(self, record: ClaimRecord) -> None:
        """Store one image for good: on return the line is on the disk."""
        if self._file is None:
            self._file = self._new_shard()
        self._file.write(record.to_json() + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _new_shard(self) -> IO[str]:
        paths = shard_paths(self._folder)
        number = int(paths[-1].stem.removeprefix("shard-")) + 1 if paths else 0
        file = (self._folder / f"shard-{number:05d}.jsonl").open("x", encoding="utf-8")
        folder = os.open(self._folder, os.O_RDONLY)  # the new name must reach the disk as well
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return file
