"""Terminate a process tree and remove its files, even if its owner was killed.

``python -m vapo_verl.process_tree`` is the guard of :func:`guarded` and of :func:`guarded_run`: its
standard input is a pipe from the owner, which ends when the owner does. (The kernel's
PR_SET_PDEATHSIG would reach one process only, and vLLM's engine core and Ray's agents outlive
that.)

Some files of a run are in folders that it cannot choose. Their owner is known by a lock, which the
kernel frees with the process, or by a socket on which it listens. :func:`remove_remains` removes
files without an owner, never those of a live run, in this container or in another.
"""

import fcntl
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

TERM_S = 10.0
"""Seconds between SIGTERM and SIGKILL. vLLM ignores SIGTERM while it loads a model."""
_KILL_S = 5.0
_POLL_S = 0.05
SNAPSHOT_S = 5.0
"""Seconds between two snapshots of the processes that a run has started."""
END_S = 5.0
"""Seconds for a run's processes to end by themselves once their owner is gone."""
FOLDER_PREFIX, BUCKET_PREFIX = "vapo-", "vapo_weights_"
"""Names of temporary folders of runs, and of buckets of weights in :data:`SHARED_MEMORY`."""
FOLDER_LOCK = ".vapo_temporary"
"""Locked file in such a folder. A run folder has another lock, and is never removed."""
SHARED_MEMORY = Path("/dev/shm")
LEAST_SHARED_BYTES = 16 << 20
"""With less free room there, weights cannot reach the engine, and it may not even start."""
SOCKETS = "rl-colocate-zmq-*.sock"
"""Sockets of veRL's weight transfer, in /tmp."""
_FRESH_S = 2.0
"""The owner of a younger file may not have locked it yet."""
_LONGEST_FOLDER = 60
"""Bytes. The path of a socket holds 107, of which vLLM's names take 37."""


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let a scheduler's SIGTERM end a command as Ctrl-C does: by default it skips all clean-up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def terminate_tree(leader: int) -> None:
    """Terminate the session leader `leader`, its children and the rest of its session.

    A session's processes are found even after their parents are gone: an engine core outlives a
    server that is killed.
    """
    members = process_tree(leader)
    try:
        for member in members:
            _send(member, signal.SIGTERM)
        _wait_for_end(members, TERM_S)
    finally:  # also on a second Ctrl-C
        members = list({*members, *process_tree(leader)})
        for member in members:
            _send(member, signal.SIGKILL)
        _wait_for_end(members, _KILL_S)


def process_tree(leader: int) -> list[psutil.Process]:
    """The living processes of `leader`'s tree and session, itself included."""
    members = set[psutil.Process]()
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(leader)
        members |= {parent, *parent.children(recursive=True)}
    for other in psutil.process_iter():
        with suppress(OSError):  # it has ended, or belongs to somebody else
            if os.getsid(other.pid) == leader:
                members.add(other)
    return [member for member in members if is_alive(member)]


def is_alive(member: psutil.Process) -> bool:
    """Whether `member` runs. A zombie has ended; in a container it may never be reaped."""
    try:
        return member.is_running() and member.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def guarded() -> Iterator[Callable[[int], None]]:
    """Start a guard; the yielded function sets the session leader to terminate after our end."""
    guard = _start_guard()
    assert guard.stdin is not None
    pipe = guard.stdin

    def watch(leader: int) -> None:
        pipe.write(b"%d\n" % leader)
        pipe.flush()

    try:
        yield watch
    finally:
        pipe.close()
        guard.wait()


@contextmanager
def guarded_run(held: Sequence[int] = ()) -> Iterator[Path]:
    """Yield a temporary folder for all processes that this one starts within.

    When this process leaves the context or is killed, a guard terminates those that are left and
    removes the folder and other remains. What earlier runs left is removed first.

    Args:
        held: descriptors of locked files. Their locks stay until the guard is done, so that a new
            run does not meet processes of this one.
    """
    remove_remains()
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=_short_temporary_folder()))
    with (folder / FOLDER_LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        guard = _start_guard(str(os.getpid()), str(folder), held=held)
        assert guard.stdin is not None
        try:
            yield folder
        finally:
            with suppress(subprocess.TimeoutExpired):  # the guard continues by itself
                guard.communicate(b"done\n", timeout=END_S + TERM_S)


def remove_remains() -> None:
    """Remove files of this user's runs whose owner is gone: see the module's docstring."""
    for folder in Path(tempfile.gettempdir()), Path("/tmp"):
        for path in folder.glob(f"{FOLDER_PREFIX}*"):
            if _is_old_and_ours(path, stat.S_ISDIR) and _is_unlocked(path / FOLDER_LOCK):
                shutil.rmtree(path, ignore_errors=True)
    for path in SHARED_MEMORY.glob(f"{BUCKET_PREFIX}*"):
        if _is_old_and_ours(path, stat.S_ISREG) and _is_unlocked(path):
            path.unlink(missing_ok=True)
    for path in Path("/tmp").glob(SOCKETS):
        if _is_old_and_ours(path, stat.S_ISSOCK) and not _has_listener(path):
            path.unlink(missing_ok=True)


def _is_old_and_ours(path: Path, is_kind: Callable[[int], bool]) -> bool:
    try:
        found = path.lstat()
    except OSError:  # another process has removed it
        return False
    age = time.time() - found.st_mtime
    return is_kind(found.st_mode) and found.st_uid == os.getuid() and age > _FRESH_S


def _is_unlocked(path: Path) -> bool:
    """Whether nobody holds the lock on a file; false where there is no such file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _has_listener(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:  # not known: it may be alive
            return True
    return True


def _short_temporary_folder() -> str:
    chosen = tempfile.gettempdir()
    return chosen if len(os.fsencode(chosen)) <= _LONGEST_FOLDER else "/tmp"


def _start_guard(*arguments: str, held: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "vapo_verl.process_tree", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C at the terminal must not reach the guard
        pass_fds=held,
    )


def _send(member: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        member.send_signal(number)


def _wait_for_end(members: Sequence[psutil.Process], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while any(is_alive(member) for member in members) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def guard_run(owner: int, folder: Path) -> None:
    """Record what `owner` starts until standard input ends; then terminate it and remove `folder`.

    Processes older than this guard do not belong to the run.
    An uploader of Weights & Biases ends by itself, and may continue after an orderly end.
    """
    started, since = set[psutil.Process](), psutil.Process().create_time()
    ready: list[int] = []
    while not ready:  # the pipe has ended, or brought "done"
        with suppress(psutil.NoSuchProcess):
            started.update(psutil.Process(owner).children(recursive=True))
        started = {member for member in started if member.create_time() >= since}
        ready, _, _ = select.select([0], [], [], SNAPSHOT_S)
    is_orderly = bool(os.read(0, 16))
    for member in list(started):
        with suppress(psutil.NoSuchProcess):
            started.update(member.children(recursive=True))
    started.discard(psutil.Process())
    if is_orderly:
        started = {member for member in started if not _is_uploader(member)}
    _wait_for_end(list(started), END_S)
    for member in started:
        _send(member, signal.SIGKILL)
    _wait_for_end(list(started), _KILL_S)
    shutil.rmtree(folder, ignore_errors=True)
    if any(SHARED_MEMORY.glob(f"{BUCKET_PREFIX}*")) or any(Path("/tmp").glob(SOCKETS)):
        time.sleep(_FRESH_S)
    remove_remains()


def _is_uploader(member: psutil.Process) -> bool:
    try:
        return member.name().startswith("wandb")
    except psutil.NoSuchProcess:
        return False


def main() -> None:
    """Guard a run if its process and folder are given, else the leader that stdin names last."""
    if sys.argv[1:]:
        owner, folder = sys.argv[1:]
        guard_run(int(owner), Path(folder))
    elif leaders := sys.stdin.read().split():
        terminate_tree(int(leaders[-1]))


if __name__ == "__main__":
    main()
