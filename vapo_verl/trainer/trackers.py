"""veRL's tracking backends, and ours for the console: where they write, and how they resume."""

import importlib.util
import itertools
import math
import netrc
import os
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from vapo_verl.anchors.signal import NUM_FIRST_STEPS, SIGNAL_METRICS, no_signal
from vapo_verl.console import progress, say
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
_WITHOUT_PACKAGE = ("console", "file")
COLUMNS = (
    ("reward", "vapo/reward/total", "{:.3f}"),
    ("acc", "vapo/reward/accuracy", "{:.2f}"),
    ("fmt", "vapo/reward/format", "{:.2f}"),
    ("probed", "vapo/anchors/probed_fraction", "{:.2f}"),
    ("claims", "vapo/anchors/accuracy", "{:.2f}"),
    ("kl", "actor/kl_loss", "{:.4f}"),
    ("entropy", "actor/entropy", "{:.3f}"),
    ("length", "response_length/mean", "{:.0f}"),
    ("corr", "training/rollout_actor_probs_pearson_corr", "{:.5f}"),
    ("gen", "timing_s/gen", "{:.1f}s"),
    ("step", "timing_s/step", "{:.1f}s"),
)
"""Label, metric and format of each column; a metric that a step lacks is left out."""
_VALIDATION = re.compile("val/(?P<source>.+)/(?P<what>accuracy|perception)")
_LABELS = {"accuracy": "acc", "perception": "perception"}
"""Metric of a validation and its label, which follows the data source."""
BAR_WIDTH = 20
RECENT_STEPS = 5


def check_trackers(loggers: Sequence[str]) -> None:
    """Refuse a tracking backend that veRL lacks or whose package is missing, before the start.

    Raises:
        ValueError: the first such backend, with the fix.
    """
    for name in loggers:
        package = _PACKAGES.get(name)
        if package is None and name not in _WITHOUT_PACKAGE:
            raise ValueError(
                f"trainer.logger=[{','.join(loggers)}]: {name!r} is not known; use some of "
                f"{', '.join(sorted((*_PACKAGES, *_WITHOUT_PACKAGE)))}, or []"
            )
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
    os.environ.setdefault("VERL_FILE_LOGGER_PATH", str(unused(run_dir / "verl_metrics.jsonl")))
    if "wandb" in loggers:
        os.environ.setdefault("WANDB_DIR", str(run_dir))
        if not _has_wandb_key() and "WANDB_MODE" not in os.environ:
            os.environ["WANDB_MODE"] = "offline"
            say("wandb: no WANDB_API_KEY, logging offline; send it later with `wandb sync`")


def unused(path: Path) -> Path:
    """`path`, or ``NAME.2.jsonl`` and so on after earlier starts: veRL's file logger overwrites."""
    later = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], later) if not each.exists())


def _has_wandb_key() -> bool:
    """Whether wandb finds credentials: in the environment, or in netrc for its server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    settings = wandb.Settings()
    settings.update_from_system_settings()
    settings.update_from_env_vars(dict(os.environ))
    server = urlsplit(settings.base_url).netloc
    try:
        file = os.environ.get("NETRC") or Path.home() / ".netrc"
        return netrc.netrc(file).authenticators(server) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def tell_resumed(backends: Mapping[str, Any], step: int) -> None:
    """Tell the backends that the steps after `step` are logged (again) from now on.

    TensorBoard drops what an earlier process logged for them. The config of a Weights & Biases run,
    which covers one process unless WANDB_RUN_ID is set, says after which step the process begins.
    """
    if "tensorboard" in backends:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        first = step + 1 if step else 0  # a new run begins with a validation, as step 0
        backends["tensorboard"].writer.file_writer.add_event(Event(step=first, session_log=start))
    if "wandb" in backends and step > 0:
        resumed = {"resumed_after_step": step}
        # with WANDB_RUN_ID one run goes on, whose config has the step of the last resume
        backends["wandb"].config.update(resumed, allow_val_change=True)


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


class StepLine:
    """A tracking backend that prints a step's key figures, and the phase that a step has reached.

    Args:
        total_steps: of the run.
        first_step: steps done before this process began.
    """

    def __init__(self, total_steps: int, first_step: int = 0, *, paired: bool = False) -> None:
        """`paired`: see :func:`~vapo_verl.anchors.signal.no_signal`."""
        self._total, self._done, self._paired = total_steps, first_step, paired
        self._since = time.monotonic()
        self._seconds: deque[float] = deque(maxlen=RECENT_STEPS)
        self._signals: list[list[float]] = []

    def log(self, data: Mapping[str, Any], step: int) -> None:
        """Called by veRL once a step, and for a validation before the first one."""
        now = time.monotonic()
        if step > self._done:
            self._seconds.append(now - self._since)
            self._done = step
        self._since = now
        left = self._left()
        say(step_line(data, step, self._total) + (f" | {left} left" if left else ""))
        self._warn_without_signal(data)

    def _warn_without_signal(self, data: Mapping[str, Any]) -> None:
        """Warn once, after the first steps of this process."""
        if SIGNAL_METRICS[0] not in data or len(self._signals) == NUM_FIRST_STEPS:
            return
        self._signals.append([data.get(metric, math.nan) for metric in SIGNAL_METRICS])
        is_complete = len(self._signals) == NUM_FIRST_STEPS
        if not is_complete:
            return
        if reason := no_signal(*zip(*self._signals, strict=True), paired=self._paired):
            say(f"WARNING: {reason}")

    def at(self, phase: str) -> None:
        """Tell which phase of the step has begun."""
        filled = BAR_WIDTH * self._done // max(self._total, 1)
        bar = f"[{'=' * filled}{'.' * (BAR_WIDTH - filled)}]"
        left = self._left()
        text = f"step {self._done + 1}/{self._total} {bar} {phase}"
        progress(text + (f", {left} left" if left else ""))

    def _left(self) -> str:
        """``h:mm:ss`` until the last step is done, by the median of recent steps; else empty."""
        remaining = self._total - self._done
        if not self._seconds or remaining <= 0:
            return ""
        minutes, seconds = divmod(round(remaining * median(self._seconds)), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def step_line(data: Mapping[str, Any], step: int, total: int) -> str:
    """``step 3/6 | reward 1.21  acc 0.44 ..``; validation figures follow when there are any."""
    shown = [f"{label} {form.format(data[key])}" for label, key, form in COLUMNS if key in data]
    checks = [
        f"{match['source']} {_LABELS[match['what']]} {value:.3f}"
        for key, value in data.items()
        if (match := _VALIDATION.fullmatch(key))
    ]
    parts = [f"step {step}/{total}", "  ".join(shown)]
    if checks:
        parts.append("validation: " + ", ".join(checks))
    return " | ".join(part for part in parts if part)
