"""Check the Ray cluster that a run would join, or the resources to start one."""

import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from omegaconf import DictConfig

from vapo_verl import launch
from vapo_verl.doctor.findings import Finding, error, gib, ok, warning
from vapo_verl.preflight import engine_gpus, ranks_of
from vapo_verl.process_tree import LEAST_SHARED_BYTES

CHECK = "ray"
PORTS = {6379: "GCS, --port", 10001: "Ray client, --ray-client-server-port"}
"""Default ports of `ray start --head`. A run that starts Ray itself takes free ports, but these
ports in use often mean another cluster."""
CONNECT_TIMEOUT_S = 3.0
OBJECT_STORE_FRACTION, OBJECT_STORE_MOST = 0.3, 200e9
"""Ray's default object store: this fraction of the memory in /dev/shm, up to a number of bytes."""


def check_ray(
    config: DictConfig | None, environment: Mapping[str, str] | None = None
) -> Iterator[Finding]:
    """Check that the cluster answers; without one, check ports, nodes and shared memory."""
    environment = os.environ if environment is None else environment
    address = cluster_of(config, environment)
    if address is not None:
        if _given(config):
            yield check_address(address, "ray_kwargs.ray_init.address")
        elif environment.get("RAY_ADDRESS"):
            yield check_address(address)
        else:
            yield check_left_behind(address, launch.address_file(environment))
        return
    if config is not None and config.trainer.nnodes > 1:
        yield error(
            CHECK,
            f"trainer.nnodes={config.trainer.nnodes}, but RAY_ADDRESS is not set and no Ray was "
            "started here: there is no cluster to join",
            "start Ray on all nodes and export RAY_ADDRESS=HEAD:6379 (docs/ray_cluster.md)",
        )
    yield from check_ports()
    yield check_shared_memory()


def cluster_of(
    config: DictConfig | None, environment: Mapping[str, str] | None = None
) -> str | None:
    """Address of the cluster that a run would join; None if it would start one."""
    return launch.joined_cluster(_given(config), environment)


def _given(config: DictConfig | None) -> str | None:
    return None if config is None else config.ray_kwargs.ray_init.get("address")


def check_address(address: str, name: str = "RAY_ADDRESS") -> Finding:
    """Whether something listens at `HOST:PORT` or `ray://HOST:PORT`; ``name``: its source."""
    if address == "auto":
        fix = f"ray start --head, or unset {name}"
        return error(CHECK, f"{name}=auto, but no Ray was started here", fix)
    try:
        host, port = host_and_port(address)
    except ValueError:
        return error(
            CHECK,
            f"{name}={address!r} is no address",
            f"{name}=HOST:PORT, as `ray start --head` printed it",
        )
    problem = connection_problem(host, port)
    if problem:
        return error(
            CHECK,
            f"{name}={address} does not answer: {problem}",
            "start the cluster (ray start --head), open the port between the nodes, or unset "
            f"{name} to run on this machine alone",
        )
    return ok(CHECK, f"{name}={address} answers")


def check_left_behind(address: str, file: Path) -> Finding:
    """Check a cluster whose address `ray start` stored on this machine."""
    problem = connection_problem(*host_and_port(address))
    found = f"{file} names the cluster {address}"
    fix = "ray stop, or RAY_ADDRESS=local for a separate cluster of this run"
    if problem:
        return error(CHECK, f"{found}, which does not answer: {problem}", fix)
    return warning(CHECK, f"{found}; a run without RAY_ADDRESS joins it", fix)


def host_and_port(address: str) -> tuple[str, int]:
    """Parts of `HOST:PORT` or `SCHEME://HOST:PORT`.

    Raises:
        ValueError: the address has another form.
    """
    parts = urlsplit(address if "://" in address else f"gcs://{address}")
    host, port = parts.hostname, parts.port
    if not host or not port:
        raise ValueError(f"{address!r} is no HOST:PORT")
    return host, port


def connection_problem(host: str, port: int) -> str:
    """The error of a connection to the port; empty if it succeeds."""
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
    except OSError as problem:
        return str(problem)
    return ""


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
    """Check space for Ray's object store; without it Ray uses the disk. A run needs some anyway."""
    wanted = min(OBJECT_STORE_FRACTION * psutil.virtual_memory().total, OBJECT_STORE_MOST)
    free = shutil.disk_usage(folder).free
    if free >= wanted:
        return ok(CHECK, f"{folder}: {gib(free)} free for an object store of {gib(wanted)}")
    room = f"docker run --shm-size={wanted / 2**30:.0f}g (or --ipc=host), or remount {folder}"
    if free < LEAST_SHARED_BYTES:
        return error(
            CHECK,
            f"{folder}: {free / 2**20:.0f} MiB free, and a run needs "
            f"{LEAST_SHARED_BYTES / 2**20:.0f} MiB or more",
            f"delete what earlier programs left there; {room}",
        )
    return warning(
        CHECK,
        f"{folder}: {gib(free)} free, Ray's object store wants {gib(wanted)} and would use the "
        "disk, which is many times slower",
        f"{room}; or a smaller store: +ray_kwargs.ray_init.object_store_memory=BYTES",
    )


def check_nodes(config: DictConfig | None) -> Iterator[Finding]:
    """Join the cluster as a run does and count its nodes; `check_ray` reports a bad address.

    Without a cluster, count the CPUs of the one that the run starts.
    """
    address = cluster_of(config)
    if address is None and config is not None and config.trainer.nnodes == 1:
        yield judge_own(config, os.cpu_count() or 1)
    if address is None or "://" in address or check_address(address).status != "ok":
        return
    import ray

    try:
        ray.init(address, logging_level="ERROR", log_to_driver=False)
        nodes, free = ray.nodes(), ray.available_resources()
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as problem:
        reason = str(problem.__cause__ or problem).strip().splitlines()[-1]
        yield error(
            CHECK,
            f"{address} answers, but this machine cannot join: {reason}",
            "run on a node of the cluster (ray start --address), in the same environment, with "
            "the RAY_AUTH_MODE and the token that Ray was started with",
        )
        return
    finally:
        ray.shutdown()
    yield judge_nodes(config, nodes, free.get("GPU", 0))


def judge_own(config: DictConfig, cores: int) -> Finding:
    """Whether the node that a run starts has enough logical CPUs; `accelerator` counts its GPUs.

    Args:
        cores: of this machine, which Ray counts without ``ray_kwargs.ray_init.num_cpus``.
    """
    from vapo_verl.trainer.task_runner import shortage

    cpus = config.ray_kwargs.ray_init.get("num_cpus") or cores
    node = {
        "NodeID": "",
        "NodeManagerHostname": "this machine",
        "Alive": True,
        "Resources": {"CPU": cpus, "GPU": ranks_of(config) + engine_gpus(config)},
    }
    lack = shortage(config, [node])
    if lack:
        return error(CHECK, lack.found, lack.fix)
    return ok(CHECK, f"{cpus} logical CPUs are enough for the processes of the run")


def judge_nodes(
    config: DictConfig | None, nodes: Sequence[Mapping[str, Any]], free_slots: float
) -> Finding:
    """Compare ``ray.nodes()`` with trainer.nnodes, trainer.n_gpus_per_node, and CPUs taken."""
    slots = [
        (node["NodeManagerHostname"], int(node["Resources"].get("GPU", 0)))
        for node in nodes
        if node["Alive"]
    ]
    listed = ", ".join(f"{name} {number}" for name, number in slots)
    found = f"the cluster has {len(slots)} nodes; GPU slots: {listed}, {free_slots:.0f} free"
    if config is None:
        return ok(CHECK, found)
    wanted, each = config.trainer.nnodes, config.trainer.n_gpus_per_node
    engines = engine_gpus(config)
    wanted_slots = f"trainer.nnodes={wanted}, trainer.n_gpus_per_node={each}"
    wanted_slots += f" and {engines} slots for engines" if engines else ""
    if sum(number >= each for _, number in slots) < wanted:
        return error(
            CHECK,
            f"{wanted_slots}, but {found}",
            "ray start on the nodes that are missing (--num-gpus where Ray does not see them), or "
            "a smaller trainer.nnodes or trainer.n_gpus_per_node",
        )
    from vapo_verl.trainer.task_runner import shortage

    if lack := shortage(config, nodes):
        return error(CHECK, lack.found, lack.fix)
    if free_slots < wanted * each + engines:
        fix = "end the other run, or wait for it: `ray status` lists what is in use"
        return error(CHECK, f"{wanted_slots}, but another run holds slots: {found}", fix)
    return ok(CHECK, f"{wanted_slots}; {found}")
