"""Where veRL's tracking backends put their files: into the run folder."""

from __future__ import annotations

import netrc
import os
from collections.abc import Sequence
from pathlib import Path


def prepare_trackers(run_dir: Path, loggers: Sequence[str]) -> None:
    """Set the environment the backends read, before veRL makes them; what is set already stays.

    Weights & Biases runs offline where no key is set: a machine without an account, or a test,
    must not wait for a login.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TENSORBOARD_DIR", str(run_dir / "tensorboard"))
    os.environ.setdefault("VERL_FILE_LOGGER_PATH", str(run_dir / "verl_metrics.jsonl"))
    if "wandb" in loggers:
        os.environ.setdefault("WANDB_DIR", str(run_dir))
        if not _has_wandb_key() and "WANDB_MODE" not in os.environ:
            os.environ["WANDB_MODE"] = "offline"
            print("wandb: no WANDB_API_KEY, logging offline; send it later with `wandb sync`")


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
