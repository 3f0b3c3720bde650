"""The Ray actor that owns the trainer: veRL's, with this package registered in its process."""

from pathlib import Path

import ray
from omegaconf import DictConfig
from verl.trainer import main_ppo

from vapo_verl.console import phases
from vapo_verl.patches.upstream import silence_config_print
from vapo_verl.preflight import check_model_of_node
from vapo_verl.trainer.stopping import RunStopped
from vapo_verl.trainer.trackers import prepare_trackers

STOP_GROUP = "stop"
"""Ray concurrency group of the methods that answer while ``run`` runs."""


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
