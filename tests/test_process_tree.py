"""Nothing of a run stays when its process ends, however it ends; nothing of a live run goes."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from vapo_verl import process_tree
from vapo_verl.files import FolderLock
from vapo_verl.process_tree import FOLDER_LOCK, guarded_run, is_alive, remove_remains

CHILD = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
if sys.argv[1:]:
    subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True)
time.sleep(600)
"""
OWNER = """
import fcntl, subprocess, sys
from vapo_verl import process_tree
process_tree.SNAPSHOT_S = process_tree.END_S = 0.5
lock = open(sys.argv[2], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
with process_tree.guarded_run(held=[lock.fileno()]) as folder:
    print(folder, flush=True)
    (folder / "socket").touch()
    subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[1]], start_new_session=True)
    sys.stdin.readline()
"""


@pytest.fixture
def owner(tmp_path) -> Iterator[tuple[subprocess.Popen[str], Path, list[psutil.Process]]]:
    """A process in `guarded_run`, its folder, its child and its grandchild."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, CHILD, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    members = [psutil.Process(int(process.stdout.readline())) for _ in range(2)]
    yield process, folder, members
    for member in (process, *members):
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def wait_for(happened: Callable[[], bool], timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("of_group", [False, True])
def test_a_killed_owner_leaves_nothing(owner, of_group):
    process, folder, members = owner
    members[1].suspend()  # a stopped process does not even get SIGTERM
    time.sleep(1)
    (os.killpg if of_group else os.kill)(process.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(is_alive, members)) and not folder.exists())


def test_a_lock_of_a_killed_owner_is_free_only_when_its_processes_are_gone(owner, tmp_path):
    process, _, members = owner
    time.sleep(1)
    process.kill()

    def is_free() -> bool:
        alive = any(map(is_alive, members))
        with (tmp_path / "lock").open() as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert not alive
            return True
        return False

    wait_for(is_free)


def test_an_owner_that_ends_leaves_nothing(owner):
    process, folder, members = owner
    process.stdin.write("\n")
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    assert not any(map(is_alive, members))
    assert not folder.exists()


def test_processes_from_before_the_run_are_left_alone():
    earlier = subprocess.Popen(["sleep", "600"])
    try:
        time.sleep(0.2)
        with guarded_run():
            time.sleep(1)
        assert earlier.poll() is None
    finally:
        earlier.kill()
        earlier.wait()


def test_an_error_within_leaves_nothing():
    with pytest.raises(KeyError), guarded_run() as folder:
        raise KeyError
    assert not folder.exists()


@pytest.fixture
def places(monkeypatch, tmp_path):
    """Temporary folder and shared memory of a test alone."""
    for name in ("tmp", "shm"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(process_tree.tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(process_tree, "SHARED_MEMORY", tmp_path / "shm")
    return tmp_path


def aged(path: Path) -> Path:
    os.utime(path, (time.time() - 60,) * 2)
    return path


def temporary_folder(path: Path) -> Path:
    path.mkdir()
    (path / FOLDER_LOCK).touch()
    (path / "socket").touch()
    return aged(path)


def test_remains_without_an_owner_go_and_those_of_live_runs_stay(places):
    dead, alive = (temporary_folder(places / "tmp" / f"vapo-{name}") for name in ("dead", "alive"))
    fresh = temporary_folder(places / "tmp" / "vapo-fresh")
    os.utime(fresh)
    other = temporary_folder(places / "tmp" / "vapo_other")
    strange = places / "tmp" / "vapo-strange"
    strange.mkdir()
    aged(strange)
    buckets = [places / "shm" / f"vapo_weights_{name}" for name in ("dead", "alive")]
    for bucket in buckets:
        bucket.touch()
        aged(bucket)
    with (alive / FOLDER_LOCK).open("w") as lock, buckets[1].open("rb") as bucket:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fcntl.flock(bucket, fcntl.LOCK_EX)
        aged(alive)
        remove_remains()
    left = sorted(path.name for path in (places / "tmp").iterdir())
    assert left == sorted([alive.name, fresh.name, other.name, strange.name])
    assert list((places / "shm").iterdir()) == [buckets[1]]
    assert not dead.exists()


def test_a_finished_run_folder_stays_whatever_its_name(places):
    """Runs of users in the temporary folder, with the lock that a run leaves."""
    folder = places / "tmp" / "vapo-seed0"
    with FolderLock(folder):
        pass
    aged(folder)
    remove_remains()
    assert folder.exists()


def test_sockets_that_nobody_listens_on_go(places):
    paths = [Path(f"/tmp/rl-colocate-zmq-test-{os.getpid()}-{name}.sock") for name in ("a", "b")]
    listeners = [socket.socket(socket.AF_UNIX) for _ in paths]
    try:
        for listener, path in zip(listeners, paths, strict=True):
            listener.bind(str(path))
            listener.listen()
            aged(path)
        listeners[0].close()  # as when its process is killed: the file stays
        remove_remains()
        assert [path.exists() for path in paths] == [False, True]
    finally:
        for listener, path in zip(listeners, paths, strict=True):
            listener.close()
            path.unlink(missing_ok=True)


def test_a_long_temporary_folder_leaves_room_for_the_path_of_a_socket(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setattr(process_tree.tempfile, "tempdir", str(long))
    with guarded_run() as folder:
        name = folder / "01234567-89ab-cdef-0123-456789abcdef"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(name))
