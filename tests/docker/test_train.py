"""The trainer's container: its settings, waiting for nodes, signals, and naming the lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.docker.train import train
from tests.paths import ROOT


def node(name: str, *, gpus: int = 8, alive: bool = True, port: int = 0):
    address = "127.0.0.1" if port else "10.0.0.9"
    return train.Node(id=name, hostname=name, address=address, port=port, gpus=gpus, alive=alive)


def settings(**environment: str):
    return train.Settings.read({"VAPO_JOIN_TIMEOUT_S": "0", **environment})


def test_the_driver_gets_the_size_of_the_cluster_and_overrides_last():
    command = settings(VAPO_WORKERS="1", VAPO_ARGS="a=1 'b=x y'").command()
    assert "+recipe=vapo" in command
    assert "trainer.nnodes=2" in command
    assert "trainer.n_gpus_per_node=8" in command
    assert "trainer.default_local_dir=/runs/vapo" in command
    assert command[-2:] == ["a=1", "b=x y"]


def test_empty_settings_are_as_good_as_none():
    empty = settings(VAPO_NODES="", VAPO_WORKERS="", VAPO_RUN="", VAPO_RECIPE="", VAPO_ARGS="")
    assert empty == settings()


def test_a_number_that_is_none_is_named():
    with pytest.raises(ValueError, match="VAPO_WORKERS='two' is not a number"):
        settings(VAPO_WORKERS="two")


def test_nodes_count_when_they_have_all_their_gpus():
    """The driver's own node has none; the third comes at the second look."""
    looks = iter(
        [
            [node("driver", gpus=0), node("a"), node("dead", alive=False)],
            [node("driver", gpus=0), node("a"), node("b")],
        ]
    )
    wanted = settings(VAPO_NODES="2", VAPO_JOIN_TIMEOUT_S="60")
    found = train.wait_for_nodes(lambda: next(looks), wanted, poll_s=0)
    assert [n.id for n in found] == ["a", "b"]


def test_missing_nodes_are_counted_and_small_ones_named():
    nodes = [node("driver", gpus=0), node("a"), node("b", gpus=4)]
    with pytest.raises(train.NodesMissingError) as error:
        train.wait_for_nodes(lambda: nodes, settings(VAPO_NODES="3"), poll_s=0)
    assert "2 of 3 nodes missing after 0 s" in str(error.value)
    assert "Joined: a (10.0.0.9, 8 GPUs)" in str(error.value)
    assert "VAPO_GPUS_PER_NODE=8: b (10.0.0.9, 4 GPUs)" in str(error.value)


def test_a_node_is_lost_when_it_is_dead_or_gone_or_silent():
    """Ray still has the last one alive, but nobody listens at its port any more."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port, silent = server.getsockname()[1], unused.getsockname()[1]
        before = [node(name, port=port) for name in "abc"] + [node("d", port=silent)]
        now = [before[0], node("b", alive=False, port=port), node("new"), before[3]]
        assert [n.id for n in train.lost_nodes(before, now)] == ["b", "c", "d"]


@pytest.mark.parametrize("code", [0, 2, 75])
def test_the_exit_code_is_the_drivers(code):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert train.run_driver([sys.executable, "-c", f"raise SystemExit({code})"]) == code
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_driver_that_was_killed_ends_as_in_a_shell():
    suicide = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert train.run_driver([sys.executable, "-c", suicide]) == 128 + signal.SIGKILL


def test_sigterm_reaches_the_driver(tmp_path):
    """The driver, not the script, decides when and how the run ends."""
    ready = tmp_path / "ready"
    driver = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)"
    )
    script = f"import sys; from train import run_driver; sys.exit(run_driver([sys.executable, '-c', {driver!r}]))"  # noqa: E501
    process = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT / "docker")}
    )
    while not ready.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75


def test_a_head_that_is_gone_is_named():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        assert f"the head at {address}" in train.explain([node("a")], address, "/runs/vapo")
