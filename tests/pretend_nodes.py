"""Pretend nodes on one machine, without containers: Linux namespaces, for tests of several nodes.

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
mount -t tmpfs -o size=4g shm /dev/shm
mkdir -p /tmp/ray && mount --bind "$1/ray" /tmp/ray
while ! ip link show eth0 >&/dev/null; do sleep 0.05; done
touch "$1/ready"
while :; do sleep 1000 & wait $!; done
"""


def why_not() -> str:
    """Why this machine cannot pretend; empty where it can."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        return f"{', '.join(missing)}: not installed (apt install iproute2 util-linux)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = subprocess.run(["unshare", "--net", "--pid", "--mount", "--fork", "true"])
    return "" if probe.returncode == 0 else "unshare is not allowed here"


class PretendNode:
    """One node. It is off until `boot`."""

    def __init__(self, folder: Path, address: str, bridge: str, number: int) -> None:
        self.name, self.address = folder.name, address
        self._folder, self._bridge, self._cable = folder, bridge, f"{bridge}n{number}"
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
        _ip(f"link add {self._cable} type veth peer name eth0 netns {self._pid}")
        _ip(f"link set {self._cable} master {self._bridge} up")
        for setting in (
            f"addr add {self.address}/24 dev eth0",
            "link set eth0 up",
            "link set lo up",
            f"route add default via {self.address.rpartition('.')[0]}.1",
        ):
            inside = ["nsenter", "-t", str(self._pid), "-n", "ip", *setting.split()]
            subprocess.run(inside, check=True)
        _wait_for((self._folder / "ready").exists)

    def power_off(self) -> None:
        """Every process of the node dies at once; its cable goes with its network."""
        if self._init is not None:
            self._init.kill()
            self._init.wait()
            self._init = None
            # the kernel takes it away later, and the next boot wants its name
            subprocess.run(["ip", "link", "delete", self._cable], capture_output=True)

    def unplug(self) -> None:
        _ip(f"link set {self._cable} down")

    def plug(self) -> None:
        _ip(f"link set {self._cable} up")

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
def pretend_nodes(folder: Path, number: int, prefix: str = "node") -> Iterator[list[PretendNode]]:
    """``number`` nodes named node1, node2, ... that are up, see each other and know their names."""
    bridge, network = _new_bridge()
    nodes = [
        PretendNode(folder / f"{prefix}{i}", f"{network}.{10 + i}", bridge, i)
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
        _ip(f"link delete {bridge}")


def _new_bridge() -> tuple[str, str]:
    """The first of 10.77.0 to 10.77.255 that no other set of nodes has."""
    for i in range(256):
        bridge, network = f"pretend{i}", f"10.77.{i}"
        made = subprocess.run(
            ["ip", "link", "add", bridge, "type", "bridge"], capture_output=True, text=True
        )
        if made.returncode == 0:
            _ip(f"addr add {network}.1/24 dev {bridge}")
            _ip(f"link set {bridge} up")
            return bridge, network
        if "exists" not in made.stderr:
            raise RuntimeError(f"no bridge: {made.stderr.strip()}")
    raise RuntimeError("bridges pretend0 to pretend255 are all taken: ip link delete NAME")


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


def _wait_for(condition: Callable[[], object], timeout_s: float = 20) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "the node does not start"
        time.sleep(0.02)
