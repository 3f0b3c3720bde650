"""The Ray actor that owns the trainer: veRL's, with this package registered in its process."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from verl.trainer.main_ppo import TaskRunnerV1

from vapo_verl.trainer.trackers import prepare_trackers


class VapoTaskRunner(TaskRunnerV1.__ray_metadata__.modified_class):
    """Registers the trainer and the estimator, then runs veRL's loop."""

    def run(self, config: DictConfig) -> None:
        import vapo_verl.trainer.trainer  # noqa: F401  registers "vapo"

        loggers = config.trainer.logger
        prepare_trackers(
            Path(config.trainer.default_local_dir),
            [loggers] if isinstance(loggers, str) else loggers,
        )
        super().run(config)
