"""The files of a run folder, and its resolved config."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vapo_verl.files import atomic_write_text
from vapo_verl.run_folder import RunFolderError

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
ROLLOUT_FOLDER = "rollouts"
REPORT_FILE = "report.html"


def write_config(run_dir: Path, config: DictConfig) -> None:
    """The config as it was run, every reference resolved."""
    run_dir.mkdir(parents=True, exist_ok=True)
    atomic_write_text(run_dir / CONFIG_FILE, OmegaConf.to_yaml(config, resolve=True))


@contextmanager
def named_failure(path: Path) -> Iterator[None]:
    """A context that writes `path` during training.

    Raises:
        RunFolderError: it cannot be written; with the cause and the free space.
    """
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(path.anchor if not path.parent.exists() else path.parent).free
        raise RunFolderError(
            f"could not write {path}: {error} (free space there: {free / 2**30:.2f} GiB). If the "
            "disk is full, free some space; the same command resumes from the newest checkpoint."
        ) from error
