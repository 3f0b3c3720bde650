"""A folder of results that one process at a time writes, line by line, for good."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from vapo_verl.data.errors import FileError

LOCK_NAME = ".lock"


class FolderLock:
    """An advisory lock on a folder; the kernel frees it when its process dies, however it dies.

    The file stays behind, empty of meaning: only the lock on it counts, its text names the holder.
    Used as a context, which makes the folder where there is none.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._file: IO[str] | None = None

    def __enter__(self) -> FolderLock:
        """Raises FileError, naming the other process, when one holds the folder."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._acquire()
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _acquire(self) -> None:
        path = self._folder / LOCK_NAME
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise FileError(
                f"{self._folder}: {holder} is writing here; wait for it, or give another --out"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file


def append_line(file: IO[str], line: str) -> None:
    """On return the line, its end included, is on the disk."""
    file.write(line + "\n")
    file.flush()
    os.fsync(file.fileno())
