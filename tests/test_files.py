"""Folder locks: one owner at a time, on this machine and on others, dead and alive."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from vapo_verl import files
from vapo_verl.files import EXPIRY_S, LOCK_NAME, FolderLock, FolderLocked, atomic_folder

ELSEWHERE = {"pid": 77, "host": "node-7", "boot": "another boot"}

HOLD = """
import sys, time
from pathlib import Path
from vapo_verl.files import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def left_by(folder, holder, age_s=0.0):
    """The lock's file of a holder that renewed it so long ago."""
    path = folder / LOCK_NAME
    path.write_text(json.dumps(holder) + "\n")
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def test_a_second_process_is_refused_with_the_first_ones_name(tmp_path, holder):
    started = time.monotonic()
    with pytest.raises(FolderLocked, match=f"process {holder.pid} on .* is writing here") as locked:
        FolderLock(tmp_path, fix="name another folder").__enter__()
    assert "; name another folder" in str(locked.value)
    assert not locked.value.may_expire
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_process_of_this_machine_is_followed_at_once(tmp_path, holder, capsys, number):
    holder.send_signal(number)
    holder.wait()
    with FolderLock(tmp_path):
        pass
    said = capsys.readouterr().err
    assert f"taking over the lock of process {holder.pid} on " in said


def test_a_process_that_is_still_ending_is_waited_for_with_one_line(tmp_path, capsys):
    """As after a requeue: the old process lets go within the wait."""
    code = HOLD.replace("time.sleep(60)", "time.sleep(2)")
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    with FolderLock(tmp_path, wait_s=30):
        said = capsys.readouterr().err
    assert process.wait() == 0
    assert said.count("in use by process") == 1
    assert f"process {process.pid} on " in said and "waiting up to 30 s for it to end" in said


def test_a_lock_that_was_let_go_leaves_nothing_to_take_over(tmp_path, capsys):
    for _ in range(2):
        with FolderLock(tmp_path):
            assert str(os.getpid()) in (tmp_path / LOCK_NAME).read_text()
    assert (tmp_path / LOCK_NAME).read_text() == ""
    assert capsys.readouterr().err == ""


def test_a_live_heartbeat_of_another_machine_keeps_the_folder(tmp_path):
    left_by(tmp_path, ELSEWHERE, EXPIRY_S / 2)
    with pytest.raises(FolderLocked, match="process 77 on node-7 is writing here") as locked:
        FolderLock(tmp_path).__enter__()
    assert locked.value.may_expire
    assert "node-7" in (tmp_path / LOCK_NAME).read_text()


def test_an_expired_heartbeat_of_another_machine_is_followed(tmp_path, capsys):
    left_by(tmp_path, ELSEWHERE, EXPIRY_S + 5)
    with FolderLock(tmp_path):
        assert "node-7" not in (tmp_path / LOCK_NAME).read_text()
    assert "taking over the lock of process 77 on node-7" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]


def test_a_name_alone_does_not_make_it_the_same_machine(tmp_path):
    """Two containers called localhost on two machines."""
    left_by(tmp_path, {**ELSEWHERE, "host": files.socket.gethostname()})
    with pytest.raises(FolderLocked):
        FolderLock(tmp_path).__enter__()


def test_the_heartbeat_is_renewed_and_ends_with_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "HEARTBEAT_S", 0.05)
    with FolderLock(tmp_path):
        path = left_by(tmp_path, json.loads((tmp_path / LOCK_NAME).read_text()), 1000)
        deadline = time.monotonic() + 20  # a busy machine may let the thread wait
        while time.time() - path.stat().st_mtime > 10 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert time.time() - path.stat().st_mtime < 30
    os.utime(path, (1, 1))
    time.sleep(0.3)
    assert path.stat().st_mtime == 1


def test_a_holder_that_lost_its_lease_stops_renewing_it(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "HEARTBEAT_S", 0.05)
    with FolderLock(tmp_path):
        path = left_by(tmp_path, ELSEWHERE, 1000)
        time.sleep(0.5)
        assert time.time() - path.stat().st_mtime > 900


def test_a_lock_that_a_dead_machine_left_on_its_server_names_the_file(tmp_path, monkeypatch):
    """As NFSv3 keeps it until that machine starts again."""

    def refuse(file, how):
        raise BlockingIOError

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = left_by(tmp_path, ELSEWHERE, EXPIRY_S + 40)
    with pytest.raises(FolderLocked, match=r"last sign is 10\d s old.*delete ") as locked:
        FolderLock(tmp_path).__enter__()
    assert str(path) in str(locked.value) and locked.value.may_expire
    left_by(tmp_path, ELSEWHERE, 5)
    with pytest.raises(FolderLocked) as locked:
        FolderLock(tmp_path).__enter__()
    assert "delete" not in str(locked.value)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_goes_by_the_heartbeat(tmp_path, monkeypatch, number):
    def refuse(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(files, "SETTLE_S", 0.01)
    with FolderLock(tmp_path), pytest.raises(FolderLocked) as locked:
        FolderLock(tmp_path).__enter__()
    assert locked.value.may_expire  # on this machine, too: nothing else tells
    with FolderLock(tmp_path):
        pass


def test_other_errors_of_the_lock_are_not_hidden(tmp_path, monkeypatch):
    def fail(file, how):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="broken disk"):
        FolderLock(tmp_path).__enter__()


@pytest.mark.parametrize("text", ["process 12 on here\n", "{}", "[1]", "\0\0", '{"pid": 1}'])
def test_a_file_of_another_form_is_no_holder(tmp_path, text):
    (tmp_path / LOCK_NAME).write_text(text)
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()


FILL = """
import sys, time
from pathlib import Path
from vapo_verl.files import atomic_folder
with atomic_folder(Path(sys.argv[1])) as temporary:
    (temporary / "weights").write_bytes(bytes(1000))
    print("filled", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def filler(tmp_path):
    """A process that fills `tmp_path / "one"`."""
    command = [sys.executable, "-c", FILL, str(tmp_path / "one")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "filled\n"
    yield process
    process.kill()
    process.wait()


def unfinished(folder):
    return [path for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_a_folder_of_a_killed_writer_is_removed_and_that_of_a_living_one_stays(tmp_path, filler):
    with atomic_folder(tmp_path / "two") as temporary:
        (temporary / "file").touch()
        assert len(unfinished(tmp_path)) == 2
    [left] = unfinished(tmp_path)
    assert (left / "one" / "weights").stat().st_size == 1000
    filler.kill()
    filler.wait()
    with atomic_folder(tmp_path / "one") as temporary:
        assert not left.exists()
        (tmp_path / "plain").mkdir()
        assert temporary.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "plain", "two"]


@pytest.mark.parametrize("content", [json.dumps(ELSEWHERE), "", "of something else"])
def test_a_folder_of_another_machine_or_of_an_unknown_writer_stays(content, tmp_path):
    folder = tmp_path / ".one.abcd.tmp"
    folder.mkdir()
    (folder / ".writer").write_text(content)
    (tmp_path / f".one.{os.getpid()}.tmp").mkdir()  # of an older release, with this process's id
    with atomic_folder(tmp_path / "one"):
        pass
    assert len(unfinished(tmp_path)) == 2
    assert (tmp_path / "one").is_dir()
