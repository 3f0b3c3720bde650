"""Files that appear complete or not at all, and folders that one process at a time writes."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

FOLDER_SYNC_UNSUPPORTED = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
)
"""Errors of network file systems (CIFS, some FUSE and NFS servers) on fsync of a folder."""
LOCK_NAME = ".lock"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path; it is moved to `path` on success and removed after an error.

    The temporary path is in the same folder, because a rename is atomic within a file system only.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill; it becomes ``folder`` on success, and is gone after any error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to the disk, where its file system supports that.

    A file system that has no fsync for folders orders their entries itself; the files in them are
    synced separately, and their errors are never ignored.

    Raises:
        OSError: the sync failed, for instance for a full disk or a lost server.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in FOLDER_SYNC_UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


class FolderLocked(OSError):
    """Another process writes the folder; the message names both."""


class FolderLock:
    """An advisory lock on a folder; the kernel frees it when the holding process ends.

    The file stays: only the lock on it counts, and its text names the holder. Used as a context,
    which makes the folder if needed.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._file: IO[str] | None = None

    def __enter__(self) -> FolderLock:
        """Raises FolderLocked, naming the other process, when one holds the folder."""
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
            raise FolderLocked(
                f"{self._folder}: {holder} is writing here; wait for it, or give another --out"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file


def append_line(file: IO[str], line: str) -> None:
    """Append `line` and its line feed; both are on the disk on return."""
    file.write(line + "\n")
    file.flush()
    os.fsync(file.fileno())


def atomic_write_text(path: Path, text: str) -> None:
    """Replace ``path`` atomically: a reader, or a crash, sees the old text or the new."""
    with atomic_write(path) as temporary, temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
