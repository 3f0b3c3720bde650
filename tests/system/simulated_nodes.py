"""Simulated nodes on one machine, without containers: Linux namespaces, for tests of several nodes.

Each node has a network with its own address, a host name, processes, /dev/shm and /tmp/ray; the
rest of the file system is shared, as on a cluster. Power-off ends all its processes at once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

TOOLS = ("ip", "nsenter", "unshare", "setpriv")
# pid 1 of a node; "$1": its files
INIT = """
hostname "${1##*/}"
mount --bind "$1/../hosts" /etc/hosts
mount --bind "$1/../resolv.conf" /etc/resolv.conf
mount -t tmpfs -o size=8g shm /dev/shm
mkdir -p /tmp/ray && mount --bind "$1/ray" /tmp/ray
while ! ip link show eth0 >&/dev/null; do sleep 0.05; done
touch "$1/ready"
while :; do sleep 1000 & wait $!; done
"""


def why_not() -> str:
    """Why this machine cannot simulate nodes; empty if it can."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        return f"{', '.join(missing)}: not installed (apt install iproute2 util-linux)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = subprocess.run(["unshare", "--net", "--pid", "--mount", "--fork", "true"])
    return "" if probe.returncode == 0 else "unshare is not allowed here"


class Switch:
    """Joins the nodes' cables, in a network of its own: no firewall of this machine is between."""

    address = "10.77.0.1"

    def __init__(self) -> None:
        outside = os.readlink("/proc/self/ns/net")
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        _wait_for(lambda: os.readlink(f"/proc/{self._process.pid}/ns/net") != outside)
        self._ip("link add switch type bridge")
        self._ip(f"addr add {self.address}/24 dev switch")
        self._ip("link set switch up")

    def host(self, number: int) -> str:
        """Address of a node."""
        return f"{self.address.rpartition('.')[0]}.{number}"

    def connect(self, cable: str, pid: int) -> None:
        """The network of process ``pid`` gets an eth0."""
        self._ip(f"link add {cable} type veth peer name eth0 netns {pid}")
        self._ip(f"link set {cable} master switch up")

    def disconnect(self, cable: str) -> None:
        # the kernel takes it away later, and the next boot wants its name
        inside = ["nsenter", "-t", str(self._process.pid), "-n", "ip", "link", "delete", cable]
        subprocess.run(inside, capture_output=True)

    def set_cable(self, cable: str, state: str) -> None:
        self._ip(f"link set {cable} {state}")

    def power_off(self) -> None:
        self._process.kill()
        self._process.wait()

    def _ip(self, arguments: str) -> None:
        _ip(arguments, inside=self._process.pid)


class SimulatedNode:
    """One node. It is off until `boot`."""

    def __init__(self, folder: Path, address: str, switch: Switch) -> None:
        self.name, self.address = folder.name, address
        self._folder, self._switch = folder, switch
        self._init: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def boot(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        (self._folder / "ray").mkdir(parents=True)
        # not `ip netns`: it remounts /sys and hides the control groups
        separate = ["--net", "--uts", "--pid", "--mount", "--ipc", "--mount-proc"]
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", *separate, "--fork", "--kill-child"]
        self._init = subprocess.Popen(
            [*command, "bash", "-c", INIT, "init", str(self._folder)],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children")
        _wait_for(lambda: children.read_text().strip())
        self._pid = int(children.read_text())
        self._switch.connect(self.name, self._pid)
        for setting in (
            f"addr add {self.address}/24 dev eth0",
            "link set eth0 up",
            "link set lo up",
            f"route add default via {self._switch.address}",
        ):
            _ip(setting, inside=self._pid)
        _wait_for((self._folder / "ready").exists)

    def power_off(self) -> None:
        """Every process of the node dies at once."""
        if self._init is not None:
            self._init.kill()
            self._init.wait()
            self._init = None
            self._switch.disconnect(self.name)

    def unplug(self) -> None:
        self._switch.set_cable(self.name, "down")

    def plug(self) -> None:
        self._switch.set_cable(self.name, "up")

    def start(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        output: IO[str] | int | None = None,
    ) -> subprocess.Popen[str]:
        """A process on the node, in our working directory; `power_off` ends it."""
        enter = ["nsenter", "-t", str(self._pid), "-n", "-u", "-p", "-m", "-i", "--"]
        return subprocess.Popen(
            [*enter, "env", "-C", os.getcwd(), *command],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 120,
    ) -> str:
        """What the command prints; an error where it fails."""
        process = self.start(command, env=env, output=subprocess.PIPE)
        printed, _ = process.communicate(timeout=timeout_s)
        assert process.returncode == 0, f"{self.name}: {' '.join(command)}\n{printed}"
        return printed


@contextmanager
def simulated_nodes(
    folder: Path, number: int, prefix: str = "node"
) -> Iterator[list[SimulatedNode]]:
    """``number`` nodes named node1, node2, ... that are up, see each other and know their names."""
    switch = Switch()
    nodes = [
        SimulatedNode(folder / f"{prefix}{i}", switch.host(10 + i), switch)
        for i in range(1, number + 1)
    ]
    names = [("127.0.0.1", "localhost"), *((node.address, node.name) for node in nodes)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hosts").write_text("".join(f"{address} {name}\n" for address, name in names))
    # refused at once; an unanswered reverse look-up costs gloo 10 s
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    try:
        for node in nodes:
            node.boot()
        yield nodes
    finally:
        for node in nodes:
            node.power_off()
        switch.power_off()


def _ip(arguments: str, *, inside: int) -> None:
    """``ip`` in the network of a process."""
    subprocess.run(["nsenter", "-t", str(inside), "-n", "ip", *arguments.split()], check=True)


def _wait_for(condition: Callable[[], object], timeout_s: float = 20) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "the node does not start"
        time.sleep(0.02)
