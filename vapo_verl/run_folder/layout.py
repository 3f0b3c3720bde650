"""The files of a run folder, and its resolved config."""

import itertools
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vapo_verl.files import atomic_write, atomic_write_text
from vapo_verl.run_folder import RunFolderError

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
VALIDATION_FILE = "validation.jsonl"
"""Results of runs that only validated."""
ROLLOUT_FOLDER = "rollouts"
REPORT_FILE = "report.html"
_KEPT = re.compile(r"config\.step_(\d+)(?:\.(\d+))?\.yaml")


def write_config(run_dir: Path, config: DictConfig, step: int) -> None:
    """Write the config of the steps after `step`, with every reference resolved.

    A different config in the folder is kept as that of the steps up to there:
    ``config.step_3.yaml``, then ``config.step_3.2.yaml``. Configs of later steps, whose checkpoints
    were removed or are damaged, are dropped: these steps run again.

    Args:
        step: of the checkpoint that the run begins with, once it is verified and loaded; 0 without
            one. The newest checkpoint may be damaged.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    _drop_configs_after(run_dir, step)
    text, file = OmegaConf.to_yaml(config, resolve=True), run_dir / CONFIG_FILE
    if file.exists() and (old := file.read_bytes()) != text.encode():
        stem = f"config.step_{step}"
        names = itertools.chain([f"{stem}.yaml"], (f"{stem}.{n}.yaml" for n in itertools.count(2)))
        kept = next(path for name in names if not (path := run_dir / name).exists())
        with atomic_write(kept) as temporary:
            temporary.write_bytes(old)
    atomic_write_text(file, text)


def config_file(run_dir: Path, step: int) -> Path:
    """The config under which the checkpoint of `step` was written; it need not exist."""
    kept = _kept_configs(run_dir)
    return next((path for last, path in kept if last >= step), run_dir / CONFIG_FILE)


def _kept_configs(run_dir: Path) -> list[tuple[int, Path]]:
    """Last step and file of each config that a later one has replaced, oldest first."""
    kept = []
    for path in run_dir.glob("config.step_*.yaml"):
        if match := _KEPT.fullmatch(path.name):
            kept.append((int(match[1]), int(match[2] or 1), path))
    return [(last, path) for last, _, path in sorted(kept)]


def _drop_configs_after(run_dir: Path, step: int) -> None:
    """Make the config of the steps up to `step` the newest one, if later ones were kept."""
    later = [path for last, path in _kept_configs(run_dir) if last > step]
    if not later:
        return
    current = config_file(run_dir, step)
    for path in reversed(later):  # after a kill in between, `current` is found again
        if path != current:
            path.unlink()
    if current in later:
        os.replace(current, run_dir / CONFIG_FILE)
    else:  # it ended with `step`: the newest one is of later steps, too
        (run_dir / CONFIG_FILE).unlink(missing_ok=True)


@contextmanager
def named_failure(path: Path) -> Iterator[None]:
    """A context in which `path` is written during training.

    Raises:
        RunFolderError: it cannot be written; with the cause and the free space.
    """
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(path.anchor if not path.parent.exists() else path.parent).free
        raise RunFolderError(
            f"could not write {path}: {error} (free space there: {free / 2**30:.2f} GiB). If the "
            "disk is full, free some space; the same command resumes from the newest checkpoint "
            "(with trainer.resume_mode=auto, the default)."
        ) from error
