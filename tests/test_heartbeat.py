"""A heartbeat is readable by others at any moment, whatever its process does."""

import os
import subprocess
import sys

import pytest

from vapo_verl import heartbeat


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(heartbeat.FOLDER_VARIABLE, "")  # restored afterwards
    heartbeat.start(tmp_path / "beats")
    return tmp_path / "beats"


def test_counts_and_text_are_the_last_ones(folder):
    before = heartbeat.read(folder, os.getpid()).count
    heartbeat.beat("12 responses in flight", pending=12)
    heartbeat.beat()
    beat = heartbeat.read(folder, os.getpid())
    assert (beat.count - before, beat.pending, beat.doing) == (2, 12, "12 responses in flight")


@pytest.mark.parametrize("text", ["", "x" * 1000, "ü" * 200])
def test_texts_of_any_length_fit(folder, text):
    heartbeat.beat("a longer text than the next one")
    heartbeat.beat(text)
    assert text.startswith(heartbeat.read(folder, os.getpid()).doing.rstrip("\ufffd"))


def test_a_forked_child_has_a_heartbeat_of_its_own(folder):
    before = heartbeat.read(folder, os.getpid())
    child = os.fork()
    if child == 0:
        heartbeat.beat("in the child")
        os._exit(0)
    os.waitpid(child, 0)
    assert heartbeat.read(folder, child).doing == "in the child"
    assert heartbeat.read(folder, os.getpid()) == before


def test_a_program_that_is_started_has_one_too(folder):
    code = "from vapo_verl import heartbeat; heartbeat.beat('as itself')"
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        child.wait()
    assert heartbeat.read(folder, child.pid).doing == "as itself"


def test_a_process_that_has_not_written_is_at_zero(folder):
    assert heartbeat.read(folder, 1).count == 0
    (folder / "2").write_bytes(b"half")
    assert heartbeat.read(folder, 2).count == 0


def test_a_second_start_writes_to_the_new_folder(folder, tmp_path):
    heartbeat.start(tmp_path / "other")
    heartbeat.beat("there")
    assert heartbeat.read(tmp_path / "other", os.getpid()).doing == "there"
    assert heartbeat.read(folder, os.getpid()).doing == "starting"


@pytest.mark.parametrize("where", ["", "/no/such/folder"])
def test_outside_a_run_nothing_is_written(tmp_path, where):
    code = "from vapo_verl import heartbeat; heartbeat.beat('nobody listens')"
    environment = {**os.environ, heartbeat.FOLDER_VARIABLE: where}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []
