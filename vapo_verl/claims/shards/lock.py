"""Keeps two processes from writing one claims folder at once."""

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
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Raises FileError, naming the other process, when one holds the folder."""
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

    def release(self) -> None:
        """Free the folder; more than once does no harm."""
        if self._file is not None:
            self._file.close()
            self._file = None
