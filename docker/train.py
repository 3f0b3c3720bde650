"""The trainer's container: wait for the nodes, run the driver, name the nodes that were lost.

Reads VAPO_NODES or VAPO_WORKERS, VAPO_GPUS_PER_NODE, VAPO_RECIPE, VAPO_RUN, VAPO_ARGS and
VAPO_JOIN_TIMEOUT_S; docs/docker.md says what they mean. Exits as the driver does.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

RUNS = "/runs"
BAD_INPUT, STOPPED = 2, 75
"""Exit codes of `vapo_verl.main` that are no cluster failure: its own message is enough."""
STORAGE_BESIDE_GPUS = "++transfer_queue.backend.SimpleStorage.required_node_resource=GPU"
"""TransferQueue spreads its storage over all nodes; the driver's node has no space for it."""
CONNECT_TIMEOUT_S = 5.0
POLL_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings from the environment."""

    recipe: str
    run: str
    nodes: int
    """Nodes with GPUs: the head and the workers."""
    gpus_per_node: int
    join_timeout_s: float
    overrides: tuple[str, ...]

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Raises: ValueError: a value is not a number; the message names the variable."""

        def number(name: str, default: int) -> int:
            text = environment.get(name, "").strip()
            if not (text or str(default)).isdecimal():
                raise ValueError(f"{name}={text!r} is not a number; set one, or leave it unset")
            return int(text or default)

        recipe = environment.get("VAPO_RECIPE") or "vapo"
        return cls(
            recipe=recipe,
            run=environment.get("VAPO_RUN") or recipe,
            nodes=number("VAPO_NODES", 1 + number("VAPO_WORKERS", 0)),
            gpus_per_node=number("VAPO_GPUS_PER_NODE", 8),
            join_timeout_s=number("VAPO_JOIN_TIMEOUT_S", 600),
            overrides=tuple(shlex.split(environment.get("VAPO_ARGS", ""))),
        )

    def command(self) -> list[str]:
        """The driver's command; VAPO_ARGS come last and override."""
        return [
            *(sys.executable, "-m", "vapo_verl.main", f"+recipe={self.recipe}"),
            f"trainer.nnodes={self.nodes}",
            f"trainer.n_gpus_per_node={self.gpus_per_node}",
            f"trainer.default_local_dir={RUNS}/{self.run}",
            STORAGE_BESIDE_GPUS,
            *self.overrides,
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A Ray node, that is, a container."""

    id: str
    hostname: str
    """The container's short id, unless it was given a name."""
    address: str
    port: int
    """Of the node manager, which listens while the node is up."""
    gpus: int
    alive: bool

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Node:
        """From an entry of ``ray.nodes()``."""
        return cls(
            id=info["NodeID"],
            hostname=info["NodeManagerHostname"],
            address=info["NodeManagerAddress"],
            port=info["NodeManagerPort"],
            gpus=int(info["Resources"].get("GPU", 0)),
            alive=info["Alive"],
        )

    def __str__(self) -> str:
        return f"{self.hostname} ({self.address}, {self.gpus} GPUs)"


class NodesMissingError(RuntimeError):
    """The cluster was not complete in time."""


def wait_for_nodes(
    list_nodes: Callable[[], Iterable[Node]], settings: Settings, poll_s: float = POLL_S
) -> list[Node]:
    """Wait for all nodes to join; return them.

    Raises:
        NodesMissingError: fewer joined within ``settings.join_timeout_s``; with the number.
    """
    deadline = time.monotonic() + settings.join_timeout_s
    seen = None
    while True:
        with_gpus = [node for node in list_nodes() if node.alive and node.gpus]
        complete = [node for node in with_gpus if node.gpus >= settings.gpus_per_node]
        if len(complete) >= settings.nodes:
            return complete
        if len(complete) != seen:
            seen = len(complete)
            say(
                f"{seen} of {settings.nodes} nodes have joined, waiting for {settings.nodes - seen}"
            )
        if time.monotonic() >= deadline:
            raise NodesMissingError(missing_nodes(with_gpus, complete, settings))
        time.sleep(poll_s)


def missing_nodes(with_gpus: Sequence[Node], complete: Sequence[Node], settings: Settings) -> str:
    missing = settings.nodes - len(complete)
    small = [str(node) for node in with_gpus if node not in complete]
    return (
        f"{missing} of {settings.nodes} nodes missing after {settings.join_timeout_s:.0f} s. "
        f"Joined: {', '.join(map(str, complete)) or 'none'}. "
        + (
            f"With fewer GPUs than VAPO_GPUS_PER_NODE={settings.gpus_per_node}: "
            f"{', '.join(small)}. "
            if small
            else ""
        )
        + "The log of a worker says why it did not join (docker compose logs ray-worker); expected "
        "are VAPO_NODES nodes, or else the head and VAPO_WORKERS workers"
    )


def lost_nodes(before: Sequence[Node], now: Iterable[Node]) -> list[Node]:
    """Nodes of ``before`` that are dead or do not answer; Ray detects that later."""
    alive = {node.id for node in now if node.alive}
    return [
        node
        for node in before
        if node.id not in alive or not answers(f"{node.address}:{node.port}")
    ]


@contextmanager
def joined_cluster() -> Iterator[Callable[[], list[Node]]]:
    """Yield a function that lists the nodes at RAY_ADDRESS, dead ones included."""
    import ray

    ray.init(log_to_driver=False, logging_level="ERROR")
    try:
        yield lambda: [Node.of(info) for info in ray.nodes()]
    finally:
        ray.shutdown()


def run_driver(command: Sequence[str]) -> int:
    """Run the driver, forward SIGTERM and SIGINT to it, and return its exit code."""
    driver = subprocess.Popen(command)
    before = {
        number: signal.signal(number, lambda received, _: driver.send_signal(received))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        code = driver.wait()
    finally:  # later steps can be interrupted again
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code


def answers(address: str) -> bool:
    """Whether something listens at HOST:PORT; otherwise Ray's client would end this process."""
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def explain(before: Sequence[Node], head: str, run_dir: str) -> str:
    """Explain to the user whether a failed run lost a part of its cluster."""
    resume = f"the same command resumes from the last checkpoint in {run_dir}"
    if not answers(head):
        return f"lost during the run: the head at {head}; see its log. Then {resume}"
    with joined_cluster() as list_nodes:
        lost = lost_nodes(before, list_nodes())
    if not lost:
        return "all nodes are still up: see the error above"
    return (
        f"lost during the run: {', '.join(map(str, lost))}. A container that was killed, or is out "
        f"of memory, takes the run with it: see docker inspect {lost[0].hostname}. Then {resume}"
    )


def main() -> int:
    try:
        settings = Settings.read(os.environ)
    except ValueError as error:
        say(str(error))
        return BAD_INPUT
    try:
        with joined_cluster() as list_nodes:
            nodes = wait_for_nodes(list_nodes, settings)
    except NodesMissingError as error:
        say(str(error))
        return os.EX_UNAVAILABLE
    say(f"{len(nodes)} nodes: {', '.join(map(str, nodes))}")
    code = run_driver(settings.command())
    if code not in (0, BAD_INPUT, STOPPED):
        say(explain(nodes, os.environ["RAY_ADDRESS"], f"{RUNS}/{settings.run}"))
    return code


def say(message: str) -> None:
    print(f"train: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
