"""One line per step that a person can follow."""

import time
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

from vapo_verl.anchors.signal import AGREEMENT, NUM_FIRST_STEPS, SPREAD, no_signal
from vapo_verl.console import progress, say

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


BAR_WIDTH = 20
RECENT_STEPS = 5


class StepLine:
    """A tracking backend that prints a step's most telling figures, and tells what a step is at.

    Args:
        total_steps: of the run.
        first_step: steps that were done before this process began.
    """

    def __init__(self, total_steps: int, first_step: int = 0) -> None:
        self._total, self._done = total_steps, first_step
        self._since = time.monotonic()
        self._seconds: deque[float] = deque(maxlen=RECENT_STEPS)
        self._signals: list[tuple[float, float]] = []

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
        """Once, after the first steps of this process."""
        if AGREEMENT not in data or len(self._signals) == NUM_FIRST_STEPS:
            return
        self._signals.append((data[AGREEMENT], data[SPREAD]))
        if len(self._signals) == NUM_FIRST_STEPS:
            agreements, spreads = zip(*self._signals, strict=True)
            if reason := no_signal(agreements, spreads):
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
        f"{key.split('/')[1]} {key.split('/')[2]} {value:.3f}"
        for key, value in data.items()
        if key.startswith("val-core/") or key.split("/")[-2:-1] == ["perception"]
    ]
    parts = [f"step {step}/{total}", "  ".join(shown)]
    if checks:
        parts.append("validation: " + ", ".join(checks))
    return " | ".join(part for part in parts if part)
