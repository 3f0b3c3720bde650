"""Claims on disk: folders of append-only JSON-lines shards that survive a kill at any moment.

A process writes its own new shard, one flushed and fsynced line per finished image. What a kill
leaves is at worst an unfinished last line of a shard; its image counts as not stored.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from vapo_verl.claims.shards.record import ClaimRecord, Usage, Verdict
from vapo_verl.data.errors import FileError
from vapo_verl.files import FolderLock, append_line

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
        self._open = ExitStack()
        self._file: IO[str] | None = None

    def __enter__(self) -> "ShardWriter":
        self._open.enter_context(FolderLock(self._folder))
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def write(self, record: ClaimRecord) -> None:
        """Store one image for good: on return the line is on the disk."""
        if self._file is None:
            self._file = self._open.enter_context(self._new_shard())
        append_line(self._file, record.to_json())

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


class RecordIndex:
    """Image key -> where its line is: some hundred bytes an image."""

    def __init__(self, folder: Path):
        """Read all shards once.

        Raises:
            FileError: no records there, or a damaged line.
        """
        self._places: dict[str, tuple[Path, int]] = {}
        for path in shard_paths(folder):
            for offset, record in read_shard(path):
                self._places[record.image_key] = (path, offset)
        if not self._places:
            raise FileError(f"CLAIMS_DIR: {folder} holds no records; give the --out of generate")

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __getitem__(self, key: str) -> ClaimRecord:
        path, offset = self._places[key]
        with path.open("rb") as file:
            file.seek(offset)
            return ClaimRecord.from_json(file.readline())
