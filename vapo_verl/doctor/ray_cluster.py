"""The Ray cluster a run would join, or the room for the one it would start."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from omegaconf import DictConfig

from vapo_verl.doctor.findings import Finding, error, gib, ok, warning

CHECK = "ray"
PORTS = {6379: "GCS, --port", 10001: "Ray client, --ray-client-server-port"}
"""What `ray start --head` takes unless told otherwise. A run that starts Ray itself takes free
ports, but a stranger on these ones is often another cluster."""
CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")
"""Where `ray start` leaves the address that `ray.init` joins when RAY_ADDRESS is not set."""
CONNECT_TIMEOUT_S = 3.0
OBJECT_STORE_SHARE, OBJECT_STORE_MOST = 0.3, 200e9
"""Ray's default object store: this share of the memory, at most so many bytes, in /dev/shm."""


def check_ray(
    config: DictConfig | None, environment: Mapping[str, str] = os.environ
) -> Iterator[Finding]:
    """RAY_ADDRESS answers; without it the ports are free and several nodes are not expected."""
    address = environment.get("RAY_ADDRESS", "")
    if address and address != "local":
        yield check_address(address)
        return
    if not address and CURRENT_CLUSTER.is_file():
        joined = CURRENT_CLUSTER.read_text().strip()
        yield warning(
            CHECK,
            f"{CURRENT_CLUSTER} names the cluster {joined}; a run without RAY_ADDRESS joins it",
            "ray stop, or RAY_ADDRESS=local for a cluster of the run's own",
        )
    elif config is not None and config.trainer.nnodes > 1:
        yield error(
            CHECK,
            f"trainer.nnodes={config.trainer.nnodes}, but RAY_ADDRESS is not set: a run would "
            "start Ray on this machine alone and wait for the others",
            "start Ray on all nodes and export RAY_ADDRESS=HEAD:6379",
        )
    yield from check_ports()
    yield check_shared_memory()


def check_address(address: str) -> Finding:
    """Whether something listens at `HOST:PORT` or `ray://HOST:PORT`."""
    if address == "auto":
        if CURRENT_CLUSTER.is_file():
            address = CURRENT_CLUSTER.read_text().strip()
        else:
            fix = "ray start --head, or unset RAY_ADDRESS"
            return error(CHECK, "RAY_ADDRESS=auto, but no Ray was started here", fix)
    parts = urlsplit(address if "://" in address else f"gcs://{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        return error(
            CHECK,
            f"RAY_ADDRESS={address!r} is no address",
            "export RAY_ADDRESS=HOST:PORT, as `ray start --head` printed it",
        )
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
    except OSError as problem:
        return error(
            CHECK,
            f"RAY_ADDRESS={address} does not answer: {problem}",
            "start the cluster (ray start --head), open the port between the nodes, or unset "
            "RAY_ADDRESS to run on this machine alone",
        )
    return ok(CHECK, f"RAY_ADDRESS={address} answers")


def check_ports() -> Iterator[Finding]:
    taken = [port for port in PORTS if not _is_free(port)]
    for port in taken:
        yield warning(
            CHECK,
            f"port {port} ({PORTS[port]}) is taken: `ray start --head` would fail or meet another "
            "cluster",
            f"ray stop if it is an old Ray, or another port: {PORTS[port].split(', ')[1]}",
        )
    if not taken:
        yield ok(CHECK, f"ports {', '.join(map(str, PORTS))} are free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def check_shared_memory(folder: str = "/dev/shm") -> Finding:
    """Room for the object store Ray would make; without it Ray uses the disk instead."""
    wanted = min(OBJECT_STORE_SHARE * psutil.virtual_memory().total, OBJECT_STORE_MOST)
    free = shutil.disk_usage(folder).free
    if free >= wanted:
        return ok(CHECK, f"{folder}: {gib(free)} free for an object store of {gib(wanted)}")
    return warning(
        CHECK,
        f"{folder}: {gib(free)} free, Ray's object store wants {gib(wanted)} and would use the "
        "disk, which is many times slower",
        f"docker run --shm-size={wanted / 2**30:.0f}g (or --ipc=host), or remount {folder}; or "
        "a smaller store: ray_kwargs.ray_init.object_store_memory",
    )
