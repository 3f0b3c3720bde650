"""Nodes and GPU slots of the cluster a run would join. Imports Ray: for the child process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from vapo_verl.doctor.findings import Finding, error, ok
from vapo_verl.doctor.ray_cluster import CHECK, check_address, cluster_of


def check_nodes(config: DictConfig | None) -> Iterator[Finding]:
    """Join as a run does, count, and leave. An address that is wrong or silent is `check_ray`'s."""
    address = cluster_of(config)
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


def judge_nodes(
    config: DictConfig | None, nodes: Sequence[Mapping[str, Any]], free_slots: float
) -> Finding:
    """What ``ray.nodes()`` says, against trainer.nnodes and trainer.n_gpus_per_node."""
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
    asked = f"trainer.nnodes={wanted}, trainer.n_gpus_per_node={each}"
    if sum(number >= each for _, number in slots) < wanted:
        return error(
            CHECK,
            f"{asked}, but {found}",
            "ray start on the nodes that are missing (--num-gpus where Ray does not see them), or "
            "a smaller trainer.nnodes or trainer.n_gpus_per_node",
        )
    if free_slots < wanted * each:
        fix = "end the other run, or wait for it: `ray status` tells what is in use"
        return error(CHECK, f"{asked}, but another run holds slots: {found}", fix)
    return ok(CHECK, f"{asked}; {found}")
