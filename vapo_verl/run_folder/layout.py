"""The files of a run folder, and its resolved config."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vapo_verl.files import atomic_write_text

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
ROLLOUT_FOLDER = "rollouts"
REPORT_FILE = "report.html"


def write_config(run_dir: Path, config: DictConfig) -> None:
    """The config as it was run, every reference resolved."""
    run_dir.mkdir(parents=True, exist_ok=True)
    atomic_write_text(run_dir / CONFIG_FILE, OmegaConf.to_yaml(config, resolve=True))
