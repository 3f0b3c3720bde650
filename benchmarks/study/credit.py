"""What the runs learnt from: the means of some training metrics over all steps."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from benchmarks.study.workspace import Run, Workspace

_METRICS = {
    "probed": "vapo/anchors/probed_fraction",
    "claims": "vapo/anchors/accuracy",
    "perception": "vapo/reward/perception",
    "groups_right": "vapo/advantage/groups_right",
    "groups_mixed": "vapo/advantage/groups_mixed",
    "perception_only": "vapo/advantage/perception_only",
    "kl": "actor/kl_loss",
    "step_s": "timing_s/step",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """Of one run; nan where no step has the metric."""

    arm: str
    seed: int
    probed: float
    """Share of responses behind the gate."""
    claims: float
    """Share of anchors judged right."""
    perception: float
    """R_perc over all responses, 0 where the gate is shut."""
    groups_right: float
    groups_mixed: float
    """Shares of prompts of which all, or some and not all, responses are right."""
    perception_only: float
    """Of sum |A_i|, what stands in groups that differ in nothing but perception."""
    kl: float
    """To the warm start, nats per token."""
    step_s: float
    """Seconds, two runs at a time."""


def read_credit(work: Workspace, run: Run) -> Credit:
    """From the run's `metrics.jsonl`."""
    steps = read_metrics(work, run.name)
    return Credit(
        arm=run.arm,
        seed=run.seed,
        **{name: _mean(steps, metric) for name, metric in _METRICS.items()},
    )


def read_metrics(work: Workspace, name: str) -> dict[int, dict[str, float]]:
    """Step -> metrics of a run."""
    lines = (work.folder(name) / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line["data"] for line in map(json.loads, lines)}


def _mean(steps: dict[int, dict[str, float]], metric: str) -> float:
    values = [data[metric] for data in steps.values() if data.get(metric) is not None]
    return float(np.mean(values)) if values else float("nan")
