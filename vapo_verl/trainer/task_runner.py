"""The Ray actor that owns the trainer: veRL's, with this package registered in its process."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from verl.trainer import main_ppo

from vapo_verl.trainer.trackers import prepare_trackers


class VapoTaskRunner(main_ppo.TaskRunnerV1.__ray_metadata__.modified_class):
    """Registers the trainer and the estimator, then runs veRL's loop."""

    def run(self, config: DictConfig) -> None:
        import vapo_verl.trainer.trainer  # noqa: F401  registers "vapo"

        loggers = config.trainer.logger
        prepare_trackers(
            Path(config.trainer.default_local_dir),
            [loggers] if isinstance(loggers, str) else loggers,
        )
        main_ppo.pprint = lambda *_: None  # a thousand lines that stand in the run's config.yaml
        super().run(config)
