"""veRL's tracking backends: which are installed, where they write, what a resume tells them."""

import importlib.util
import netrc
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vapo_verl.console import say
from vapo_verl.run_folder.layout import named_failure

_PACKAGES = {
    "clearml": "clearml",
    "mlflow": "mlflow",
    "rl_insight": "rl_insight",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "vemlp_wandb": "volcengine_ml_platform",
    "wandb": "wandb",
}
"""Name in `trainer.logger` -> the package that veRL imports for it."""


def check_trackers(loggers: Sequence[str]) -> None:
    """Refuse a tracking backend whose package is missing, before anything starts.

    Raises:
        ValueError: the first such backend, with the fix.
    """
    for name in loggers:
        package = _PACKAGES.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            others = ",".join(other for other in loggers if other != name)
            raise ValueError(
                f"trainer.logger=[{','.join(loggers)}]: {name} needs the package {package}, which "
                f"is not installed; `pip install {package}`, or set trainer.logger=[{others}] "
                "(metrics.jsonl is written either way)"
            )


def prepare_trackers(run_dir: Path, loggers: Sequence[str]) -> None:
    """Set the environment that the backends read, before veRL makes them; set variables are kept.

    Without a key, Weights & Biases runs offline instead of waiting for a login.

    Raises:
        ValueError: see :func:`check_trackers`.
    """
    check_trackers(loggers)
    run_dir.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TENSORBOARD_DIR", str(run_dir / "tensorboard"))
    os.environ.setdefault("VERL_FILE_LOGGER_PATH", str(run_dir / "verl_metrics.jsonl"))
    if "wandb" in loggers:
        os.environ.setdefault("WANDB_DIR", str(run_dir))
        if not _has_wandb_key() and "WANDB_MODE" not in os.environ:
            os.environ["WANDB_MODE"] = "offline"
            say("wandb: no WANDB_API_KEY, logging offline; send it later with `wandb sync`")


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def tell_resumed(backends: Mapping[str, Any], step: int) -> None:
    """Tell the backends that the steps after `step` are logged (again) from now on.

    TensorBoard drops what an earlier process logged of them. A run of Weights & Biases is that of
    one process; its config says after which step it begins.
    """
    if "tensorboard" in backends:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        first = step + 1 if step else 0  # a new run begins with a validation, as step 0
        backends["tensorboard"].writer.file_writer.add_event(Event(step=first, session_log=start))
    if "wandb" in backends and step > 0:
        backends["wandb"].config.update({"resumed_after_step": step})


class StepEnd:
    """The last tracking backend: flushes the others, then declares the checkpoint complete.

    Args:
        backends: those of veRL.
        declare_saved: see :meth:`SafeStop.declare_saved`.
    """

    def __init__(self, backends: Mapping[str, Any], declare_saved: Callable[[], None]) -> None:
        self._backends = backends
        self._declare_saved = declare_saved

    def log(self, data: Mapping[str, Any], step: int) -> None:
        """Called by veRL once a step, after all other backends."""
        if "tensorboard" in self._backends:  # keeps two minutes of events in memory
            writer = self._backends["tensorboard"].writer
            with named_failure(Path(writer.log_dir)):
                writer.flush()
        self._declare_saved()
