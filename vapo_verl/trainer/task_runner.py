"""The Ray actor that owns the trainer, and what its cluster must have: room, and no other run.

The actor is veRL's, with this package registered in its process.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray
from omegaconf import DictConfig, OmegaConf
from verl.trainer import main_ppo

from vapo_verl.console import phases, say
from vapo_verl.patches.upstream import driver_of, free_resources, silence_config_print
from vapo_verl.preflight import InputError, check_model_of_node, engine_gpus, engine_size
from vapo_verl.run_folder.resume import STORAGE_UNITS
from vapo_verl.trainer.stopping import RunStopped
from vapo_verl.trainer.trackers import prepare_trackers

STOP_GROUP = "stop"
"""Ray concurrency group of the methods that answer while ``run`` runs."""
RUNNER = {"name": "VapoTaskRunner", "namespace": "vapo_verl"}
"""The runner's name in its cluster, which Ray gives to one actor only."""
QUEUE = {"name": "TransferQueueController", "namespace": "transfer_queue"}
"""TransferQueue's name for its controller: a second run in the cluster attaches to the first one's,
trains on its responses, and kills it at the end."""
POLL_S = 0.5
RANK_CPUS, ENGINE_CPUS = 3, 2
"""CPUs that veRL reserves with each GPU of the actor, and of an engine with GPUs of its own
(``max_colocate_count`` of their pools)."""
BACKEND = "transfer_queue.backend"
STORAGE_ON_GPUS = f"++{BACKEND}.SimpleStorage.required_node_resource=GPU"


class VapoTaskRunner(main_ppo.TaskRunnerV1.__ray_metadata__.modified_class):
    """Registers the trainer and the estimator, then runs veRL's loop."""

    def run(self, config: DictConfig) -> None:
        """Train to the end.

        Raises:
            InputError: the model cannot be trained here.
            RunStopped: the run was asked to stop.
        """
        check_model_of_node(config)
        import vapo_verl.trainer.async_trainers  # registers it, and "vapo" with it
        import vapo_verl.trainer.replay  # noqa: F401  and those of vapo.debug

        loggers = config.trainer.logger
        prepare_trackers(
            Path(config.trainer.default_local_dir),
            [loggers] if isinstance(loggers, str) else loggers,
        )
        silence_config_print()
        super().run(config)
        if self.trainer.stopped_at is not None:
            raise RunStopped(self.trainer.stopped_at)

    def init_agent_loop_manager(self) -> None:
        """Start the agent loops, and wait for them and for the router.

        Their imports take seconds, which count as progress in a start but as a hang in a rollout.
        """
        phases.begin("agent loops")
        with self.trainer.explained():
            super().init_agent_loop_manager()
            started = [*self.trainer.routers, *self.agent_loop_manager.agent_loop_workers]
            ray.get([actor.__ray_ready__.remote() for actor in started])
        phases.end()

    @ray.method(concurrency_group=STOP_GROUP)
    def request_stop(self) -> bool:
        """See :meth:`VapoTrainer.request_stop`; also False before the trainer exists."""
        return self.trainer is not None and self.trainer.request_stop()

    @ray.method(concurrency_group=STOP_GROUP)
    def failure(self) -> str | None:
        """Why the run cannot go on; None while it can. The driver polls it."""
        return self.trainer.failure if self.trainer is not None else None


def create_alone(actor_class: Any, wait_s: float) -> Any:
    """Create the actor named :data:`RUNNER`, if no other run uses this Ray cluster.

    Of two starts at once, one gets the name. Names of a run that has ended are free as soon as Ray
    has noticed: neither actor is detached, so both end with their driver.

    Args:
        actor_class: with the options :data:`RUNNER`.
        wait_s: seconds that another run has to end.

    Raises:
        InputError: another run uses the cluster.
    """
    deadline, told = time.monotonic() + wait_s, False
    while True:
        driver = _driver(QUEUE)
        if driver is None:
            try:
                return actor_class.remote()
            except ValueError:  # the name is taken
                driver = _driver(RUNNER)
                if driver is None and time.monotonic() > deadline:
                    raise
        if driver is not None and time.monotonic() > deadline:
            raise InputError(
                f"another run uses this Ray cluster (its driver: {driver}), and TransferQueue, of "
                "which a cluster has one, would mix the responses of both. Wait for that run, end "
                "it with SIGTERM to its driver, or start a cluster of its own for this one "
                "(RAY_ADDRESS=local on one machine)"
            )
        if driver is not None and not told:
            say(f"waiting up to {wait_s:g} s for another run on this Ray cluster to end ({driver})")
            told = True
        time.sleep(POLL_S)


def _driver(named: Mapping[str, str]) -> str | None:
    """The driver of a named actor of any job; None if there is no such actor."""
    try:
        return driver_of(ray.get_actor(**named))
    except ValueError:
        return None


class Pool(NamedTuple):
    """GPUs and CPUs that veRL reserves on one node."""

    gpus: int
    cpus: int


class Shortage(NamedTuple):
    """Why a run would wait for ever for a place, and what to do."""

    found: str
    fix: str


def pools_of(config: DictConfig) -> list[Pool]:
    """What a run reserves: ranks of a node each, then engines with GPUs of their own."""
    trainer, rollout = config.trainer, config.actor_rollout_ref.rollout
    ranks = Pool(trainer.n_gpus_per_node, RANK_CPUS * trainer.n_gpus_per_node)
    pools = [ranks] * trainer.nnodes
    if gpus := engine_gpus(config):
        each = min(rollout.n_gpus_per_node, engine_size(rollout))
        pools += [Pool(each, ENGINE_CPUS * each)] * (gpus // each)
    return pools


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of a Ray cluster, and the CPUs of TransferQueue's storage on it."""

    name: str
    gpus: int
    cpus: int
    storage: int

    def __str__(self) -> str:
        return f"{self.name}: {self.gpus} GPUs, {self.cpus} CPUs"


def nodes_of(config: DictConfig, listed: Sequence[Mapping[str, Any]]) -> Iterator[Node]:
    """The living nodes; TransferQueue spreads its storage units over them, a CPU each.

    Args:
        listed: as ``ray.nodes()``.
    """
    alive = sorted((node for node in listed if node["Alive"]), key=lambda node: node["NodeID"])
    required = OmegaConf.select(config, f"{BACKEND}.SimpleStorage.required_node_resource")
    holding = [i for i, node in enumerate(alive) if not required or required in node["Resources"]]
    is_simple = OmegaConf.select(config, f"{BACKEND}.storage_backend") == "SimpleStorage"
    units = OmegaConf.select(config, STORAGE_UNITS) if is_simple and holding else 0
    storage = Counter(holding[unit % len(holding)] for unit in range(units))
    for i, node in enumerate(alive):
        has = node["Resources"]
        yield Node(
            name=node["NodeManagerHostname"],
            gpus=int(has.get("GPU", 0)),
            cpus=int(has.get("CPU", 0)),
            storage=storage[i],
        )


def shortage(config: DictConfig, listed: Sequence[Mapping[str, Any]]) -> Shortage | None:
    """What the nodes of a cluster lack for a run; None if all its parts have a place.

    veRL compares sums over the cluster, then waits without a limit for nodes that have room.

    Args:
        listed: as ``ray.nodes()``.
    """
    nodes, pools = list(nodes_of(config, listed)), pools_of(config)
    spare = [node.cpus - node.storage for node in nodes]
    taken = _packed(pools, nodes, spare) or _packed(pools, nodes, None)
    return _too_few_gpus(config, nodes) if taken is None else _too_few_cpus(config, nodes, taken)


def _packed(
    pools: Sequence[Pool], nodes: Sequence[Node], spare: Sequence[int] | None
) -> Counter[int] | None:
    """CPUs taken on each node, if there is a place for each pool: largest first, where it leaves
    the fewest GPUs. Without `spare`, CPUs have no limit."""
    gpus, taken = [node.gpus for node in nodes], Counter[int]()
    for pool in sorted(pools, reverse=True):
        fitting = [
            i
            for i, number in enumerate(gpus)
            if number >= pool.gpus and (spare is None or spare[i] - taken[i] >= pool.cpus)
        ]
        if not fitting:
            return None
        chosen = min(fitting, key=lambda i: gpus[i])
        gpus[chosen] -= pool.gpus
        taken[chosen] += pool.cpus
    return taken


def _too_few_gpus(config: DictConfig, nodes: Sequence[Node]) -> Shortage:
    trainer, engines = config.trainer, engine_gpus(config)
    beside = (
        f", beside {engines} GPUs for engines (actor_rollout_ref.rollout.nnodes and "
        "rollout.n_gpus_per_node)"
        if engines
        else ""
    )
    return Shortage(
        f"trainer.n_gpus_per_node={trainer.n_gpus_per_node} GPUs on each of trainer.nnodes="
        f"{trainer.nnodes} nodes{beside} have no place in the Ray cluster: "
        f"{'; '.join(map(str, nodes))}",
        "set both to what the nodes have, or start Ray on more or larger nodes (`ray start "
        "--num-gpus N` where Ray does not see the GPUs)",
    )


def _too_few_cpus(
    config: DictConfig, nodes: Sequence[Node], taken: Counter[int]
) -> Shortage | None:
    """On top of the CPUs of pools and storage, TransferQueue's controller takes 1 on any node."""
    needed = [node.storage + taken[i] for i, node in enumerate(nodes)]
    roomiest = max(range(len(nodes)), key=lambda i: nodes[i].cpus - needed[i])
    needed[roomiest] += 1
    lacking = [(node, cpus) for node, cpus in zip(nodes, needed, strict=True) if node.cpus < cpus]
    if not lacking:
        return None
    listed = "; ".join(f"{node.name} has {node.cpus}, the run takes {n}" for node, n in lacking)
    engines = f", {ENGINE_CPUS} for a GPU of an engine's own" if engine_gpus(config) else ""
    number = max(cpus for _, cpus in lacking)
    no_gpus = any(node.gpus == 0 for node, _ in lacking)
    elsewhere = f", or keep storage off nodes without GPUs: {STORAGE_ON_GPUS}" if no_gpus else ""
    return Shortage(
        f"too few logical CPUs on nodes of the Ray cluster: {listed}. They are {RANK_CPUS} for "
        f"each GPU of trainer.n_gpus_per_node={config.trainer.n_gpus_per_node}{engines}, 1 for "
        f"each storage unit of TransferQueue ({STORAGE_UNITS}="
        f"{OmegaConf.select(config, STORAGE_UNITS)}), 1 for its controller",
        f"they reserve no cores: start Ray with `ray start --num-cpus {number}`, or set "
        f"ray_kwargs.ray_init.num_cpus={number} where the run, or its Slurm job, starts Ray"
        f"{elsewhere}",
    )


def check_room(config: DictConfig) -> None:
    """Refuse a run that this Ray cluster has no place for; say where other jobs hold it.

    Raises:
        InputError: what the nodes lack.
    """
    listed = ray.nodes()
    if lack := shortage(config, listed):
        raise InputError(f"{lack.found}; {lack.fix}")
    free = free_resources()
    left = [{**node, "Resources": free.get(node["NodeID"], node["Resources"])} for node in listed]
    if lack := shortage(config, left):
        say(f"other jobs hold a part of the Ray cluster, which this run needs: {lack.found}")
