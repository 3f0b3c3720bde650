"""Atomic writes of files and folders, and a lock that lets one process at a time use a folder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

FOLDER_SYNC_UNSUPPORTED = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
)
"""Errors of network file systems (CIFS, some FUSE and NFS servers) on fsync of a folder."""
LOCK_NAME = ".lock"
_WRITER = ".writer"
"""File locked by the process that fills an :func:`atomic_folder`; it names that process."""
HEARTBEAT_S, EXPIRY_S = 10.0, 60.0
_POLL_S = 0.5
SETTLE_S = 1.0
_NO_LOCKS = frozenset(
    {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EREMOTEIO}
)
"""Errors of file systems without locks (Lustre without its mount option, some FUSE)."""


def nearest_existing(path: Path) -> Path:
    """The path, or its nearest parent that exists, which may be a file.

    Raises:
        OSError: the system refuses the name, for instance because it is too long.
    """
    return next(place for place in (path, *path.parents) if place.exists())


def obstacle(folder: Path) -> str | None:
    """Why a folder cannot be made or written; None if it can."""
    try:
        above = nearest_existing(folder)
    except OSError as error:
        return str(error)
    if not above.is_dir():
        return f"{above} is no folder"
    if not os.access(above, os.W_OK | os.X_OK):
        return f"no permission for {above}"
    return None


def sha256_of(path: Path) -> str:
    """Hexadecimal digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(2**20), b""):
            digest.update(piece)
    return digest.hexdigest()


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
    """Yield a temporary folder; it becomes ``folder`` on success and is removed after any error.

    It is in a hidden folder beside ``folder``, with a locked file that names its writer. Remains of
    killed writers beside ``folder`` are removed first.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(folder.parent)
    hidden = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        with (hidden / _WRITER).open("a+", encoding="utf-8") as file:
            with suppress(OSError):  # without a lock its writer is not named: it is never removed
                fcntl.flock(file, fcntl.LOCK_EX)
                _write_holder(file, _this_process())
            temporary = hidden / folder.name
            temporary.mkdir()
            yield temporary
            os.rename(temporary, folder)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _remove_unfinished(parent: Path) -> None:
    """Remove hidden folders of :func:`atomic_folder` whose writer was killed.

    A writer is dead if the kernel's lock is free and it ran under the same kernel. A folder of
    another machine stays, as does one whose writer is not named yet.
    """
    for path in parent.glob(f".*.tmp/{_WRITER}"):
        with suppress(OSError), path.open("r+", encoding="utf-8", errors="replace") as file:
            if _lock(file) and (writer := _read_holder(file)) and writer.boot == _boot_id():
                shutil.rmtree(path.parent, ignore_errors=True)


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
    """Another process writes the folder; the message names both, and the fix."""

    def __init__(self, message: str, holder: str, *, may_expire: bool):
        super().__init__(message)
        self.holder = holder
        """The process and its host, as text."""
        self.may_expire = may_expire
        """Whether only its heartbeat tells if it is alive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Holder:
    """The process that holds the lock, as written in the lock's file."""

    pid: int
    host: str
    boot: str
    """The kernel's id of its boot: two containers of one machine share it, two machines do not."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class FolderLock:
    """A lock on a folder, held by one process at a time: a context manager that makes the folder.

    On one machine the kernel's lock on the file ``.lock`` decides; it is freed with the process. On
    network file systems such locks may hold within one machine only, or not exist. The file
    therefore names its holder, which renews the file's time stamp every ``HEARTBEAT_S``. A holder
    on another machine counts as alive until that is ``EXPIRY_S`` old by the file system's clock.
    The file stays, empty.

    Args:
        wait_s: how long to wait for a holder on this machine. If it is above 0, a holder on another
            machine is waited for until its heartbeat could have expired.
        fix: advice to the user about a folder that stays locked, for the message.
    """

    def __init__(
        self, folder: Path, *, wait_s: float = 0.0, fix: str = "wait for it, or give another --out"
    ):
        self._folder, self._wait_s, self._fix = folder, wait_s, fix
        self._path = folder / LOCK_NAME
        self._me = _this_process()
        self._file: IO[str] | None = None
        self._released = threading.Event()

    def __enter__(self) -> FolderLock:
        """Raises FolderLocked, which names the other process, if the folder is locked."""
        self._folder.mkdir(parents=True, exist_ok=True)
        started, said = time.monotonic(), False
        while True:
            try:
                self._acquire()
                break
            except FolderLocked as locked:
                wait_s = self._wait_s
                if wait_s and locked.may_expire:
                    wait_s = max(wait_s, EXPIRY_S + HEARTBEAT_S)
                if time.monotonic() - started >= wait_s:
                    raise
                if not said:
                    text = f"{self._folder} is in use by {locked.holder}"
                    _print_line(f"{text}; waiting up to {wait_s:.0f} s for it to end")
                    said = True
            time.sleep(_POLL_S)
        threading.Thread(target=self._beat, daemon=True, name="folder lock").start()
        return self

    def __exit__(self, *error: object) -> None:
        self._released.set()
        if self._file is not None:
            with suppress(OSError):  # the folder may be gone
                self._file.truncate(0)
            self._file.close()
            self._file = None

    def fileno(self) -> int:
        """Descriptor of the locked file: a process that inherits it holds the lock, too."""
        assert self._file is not None, "the folder is not locked"
        return self._file.fileno()

    def _acquire(self) -> None:
        file = self._path.open("a+", encoding="utf-8", errors="replace")
        try:
            has_kernel_lock = _lock(file)
            holder = _read_holder(file)
            if holder is not None:
                is_dead = has_kernel_lock and holder.boot == self._me.boot
                if not is_dead and self._heartbeat_age_s(file) < EXPIRY_S:
                    raise self._locked(holder, may_expire=True)
                _print_line(
                    f"{self._folder}: taking over the lock of {holder}, which ended without "
                    "releasing it"
                )
            _write_holder(file, self._me)
            if not has_kernel_lock:
                time.sleep(SETTLE_S)  # if two came at once, the file names the later one
                if (now := _read_holder(file)) != self._me:
                    raise self._locked(now, may_expire=True)
        except BlockingIOError as error:
            holder = _read_holder(file)
            elsewhere = holder is not None and holder.boot != self._me.boot
            age_s = self._heartbeat_age_s(file) if elsewhere else 0.0
            file.close()
            raise self._locked(
                holder,
                may_expire=elsewhere,
                silent_s=age_s if age_s > EXPIRY_S else None,
            ) from error
        except BaseException:
            file.close()
            raise
        self._file = file

    def _locked(
        self, holder: _Holder | None, *, may_expire: bool, silent_s: float | None = None
    ) -> FolderLocked:
        """The error; `silent_s` is the age of a heartbeat that expired while the lock is held."""
        name = str(holder) if holder else "another process"
        message = f"{self._folder}: {name} is writing here; {self._fix}"
        if silent_s is not None:
            message += (
                f". Its last sign is {silent_s:.0f} s old: if its machine is gone and the file "
                f"server keeps its lock, delete {self._path}"
            )
        return FolderLocked(message, name, may_expire=may_expire)

    def _heartbeat_age_s(self, file: IO[str]) -> float:
        """By the file system's clock, which may differ from that of a machine."""
        probe = self._path.with_name(f"{LOCK_NAME}.{self._me.host}.{self._me.pid}")
        try:
            probe.touch()
            now = probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)
        return now - os.fstat(file.fileno()).st_mtime

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            with suppress(OSError):  # the file system may be unavailable for a moment
                if self._holder_now() != self._me:
                    return  # suspended for longer than the lease: another process has taken over
                os.utime(self._path)

    def _holder_now(self) -> _Holder | None:
        with self._path.open(encoding="utf-8", errors="replace") as file:
            return _read_holder(file)


def _lock(file: IO[str]) -> bool:
    """Take the kernel's lock on a file; False where its file system has none.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _read_holder(file: IO[str]) -> _Holder | None:
    """The holder in the file; None if it is empty or was not written by this lock."""
    file.seek(0)
    try:
        return _Holder(**json.loads(file.read()))
    except (ValueError, TypeError):
        return None


def _write_holder(file: IO[str], holder: _Holder) -> None:
    file.truncate(0)
    file.write(json.dumps(asdict(holder)) + "\n")
    file.flush()


def _this_process() -> _Holder:
    return _Holder(pid=os.getpid(), host=socket.gethostname(), boot=_boot_id())


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return socket.gethostname()


def _print_line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


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
