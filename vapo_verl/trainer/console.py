"""One line per step that a person can follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


class StepLine:
    """A tracking backend that prints a step's most telling figures."""

    def __init__(self, total_steps: int) -> None:
        self._total = total_steps

    def log(self, data: Mapping[str, Any], step: int) -> None:
        print(step_line(data, step, self._total), flush=True)


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
