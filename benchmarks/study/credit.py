"""Means of training metrics over the steps of each run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.study.spread import read_spread
from benchmarks.study.workspace import Run, Workspace

_METRICS = {
    "probed": "vapo/anchors/probed_fraction",
    "claims": "vapo/anchors/accuracy",
    "agreement": "vapo/anchors/agreement",
    "perception": "vapo/reward/perception",
    "groups_right": "vapo/advantage/groups_right",
    "groups_mixed": "vapo/advantage/groups_mixed",
    "perception_only": "vapo/advantage/perception_only",
    "perception_fraction": "vapo/advantage/perception_fraction",
    "kl": "actor/kl_loss",
    "step_s": "timing_s/step",
}
_ACCURACY = "vapo/reward/accuracy"
_QUARTER = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """Metrics of one run; nan if no step has the metric."""

    arm: str
    seed: int
    accuracy_first: float
    """Accuracy of rollouts in the first quarter of all steps, at temperature 1."""
    accuracy_last: float
    """The same in the last quarter; each prompt is used once, so these are also new prompts."""
    probed: float
    """Fraction of responses that pass the gate."""
    claims: float
    """Fraction of correct anchors."""
    agreement: float
    """Rate of equal predictions on a claim by two responses to one prompt."""
    spread: float
    """Standard deviation of R_perc among a prompt's probed responses."""
    spread_flat: float
    """The same without late emphasis, with equal weights at all positions."""
    perception: float
    """R_perc over all responses, 0 if the gate is closed."""
    groups_right: float
    groups_mixed: float
    """Fractions of prompts whose responses are all correct, or mixed."""
    perception_only: float
    """Fraction of sum |A_i| in groups whose rewards differ only in perception."""
    perception_fraction: float
    """Fraction of the advantage that perception decides: see docs/estimator.md."""
    kl: float
    """KL to the warm start, nats per token."""
    step_s: float
    """Seconds of a step, with two runs at a time."""


def read_credit(work: Workspace, run: Run) -> Credit:
    """Read from the run's `metrics.jsonl` and its saved rollouts."""
    steps = list(read_metrics(work, run.name).values())
    found = read_spread(work.folder(run.name))
    quarter = max(len(steps) // _QUARTER, 1)
    return Credit(
        arm=run.arm,
        seed=run.seed,
        accuracy_first=_mean(steps[:quarter], _ACCURACY),
        accuracy_last=_mean(steps[-quarter:], _ACCURACY),
        spread=found.paper,
        spread_flat=found.flat,
        **{name: _mean(steps, metric) for name, metric in _METRICS.items()},
    )


def read_metrics(work: Workspace, name: str) -> dict[int, dict[str, float]]:
    """Step -> metrics of a run."""
    lines = (work.folder(name) / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line["data"] for line in map(json.loads, lines)}


def _mean(steps: Sequence[Mapping[str, float]], metric: str) -> float:
    values = [data[metric] for data in steps if data.get(metric) is not None]
    return float(np.mean(values)) if values else float("nan")
