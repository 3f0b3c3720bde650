"""The Ray actor that owns the trainer, alone on its cluster.

The actor is veRL's, with this package registered in its process.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from omegaconf import DictConfig
from verl.trainer import main_ppo

from vapo_verl.console import phases, say
from vapo_verl.patches.upstream import driver_of, silence_config_print
from vapo_verl.preflight import InputError, check_model_of_node
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
