"""The training panels of the report, and which metrics each of them draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vapo_verl.anchors.signal import (
    AGREEMENT,
    DRAW_FRACTION,
    FRACTION,
    NUM_FIRST_STEPS,
    SIGNAL_METRICS,
    no_signal,
)
from vapo_verl.plots.panel import Panel, Series, missing_from, numbers
from vapo_verl.report.run_summary import RunSummary
from vapo_verl.reward.perception import CHANCE
from vapo_verl.rollout.correction import DIFF_MAX, DIFF_MEAN, RATIO_MEAN

_NO_ANCHORS = (
    "No anchors were probed. vapo.anchors.num_anchors > 0 and a claims column in the data provide"
    " them."
)
_NO_LOG_PROBS = (
    "No step has logged it; with algorithm.rollout_correction.bypass_mode=true nothing is compared."
)
_NO_ATTENTION = "No visual attention was exported. vapo.attention.enabled=true provides it."


def training_panels(runs: Sequence[RunSummary]) -> list[Panel]:
    """One panel per plan; then time per phase and validation, whose metrics the runs name."""
    phases = _found(runs, "timing_s/")
    validation = _found(runs, "val/")
    plans = [
        *PLANS,
        Plan(
            title="Signal of the perception reward",
            y_title="fraction",
            metrics=(
                (AGREEMENT, "responses to one prompt that agree"),
                (DRAW_FRACTION, "of the spread of R_perc: due to the draw"),
                (FRACTION, "of the advantage: decided by perception"),
            ),
            note=_signal_note(runs),
            missing=_NO_ANCHORS,
            is_fraction=True,
        ),
        Plan(
            title="Time per phase",
            y_title="seconds",
            metrics=phases,
            note="step is the total; a phase may include others.",
            missing=NOT_LOGGED,
        ),
        Plan(
            title="Validation",
            y_title="score",
            metrics=validation,
            missing="No validation was logged. trainer.test_freq > 0 provides it.",
        ),
    ]
    return [_panel(plan, runs) for plan in plans]


def _signal_note(runs: Sequence[RunSummary]) -> str:
    """Which runs have a perception reward that does not distinguish responses."""
    notes = []
    for run in runs:
        first = (
            list(run.metrics.series(metric).values())[:NUM_FIRST_STEPS] for metric in SIGNAL_METRICS
        )
        if reason := no_signal(*first, paired=run.is_paired):
            notes.append(f"{run.name}: {reason}" if len(runs) > 1 else f"Warning: {reason}")
    return " ".join(notes)


def _found(runs: Sequence[RunSummary], prefix: str) -> tuple[tuple[str, str], ...]:
    names = sorted({name for run in runs for name in run.metrics.names(prefix)})
    return tuple((name, name.removeprefix(prefix)) for name in names)


def _panel(plan: Plan, runs: Sequence[RunSummary]) -> Panel:
    series = []
    for number, run in enumerate(runs):
        for color, (metric, name) in enumerate(plan.metrics):
            column = run.metrics.series(metric)
            if column:
                series.append(
                    Series(
                        name=name,
                        x=numbers(column),
                        y=numbers(column.values()),
                        run=number,
                        color=color,
                    )
                )
    return Panel(
        title=plan.title,
        x_title="step",
        y_title=plan.y_title,
        series=series,
        level=plan.level,
        level_name=plan.level_name,
        note=plan.note,
        missing=missing_from([run.name for run in runs], series, plan.missing),
        y_range=(0.0, 1.0) if plan.is_fraction else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One figure over steps."""

    title: str
    y_title: str
    metrics: tuple[tuple[str, str], ...]
    """(metric, its name in the legend)"""
    missing: str
    note: str = ""
    level: float | None = None
    level_name: str = ""
    is_fraction: bool = False
    """Drawn from 0 to 1."""


NOT_LOGGED = "No step has logged it."
PLANS = (
    Plan(
        title="Reward",
        y_title="mean reward",
        metrics=tuple(
            (f"vapo/reward/{part}", part) for part in ("total", "accuracy", "format", "perception")
        ),
        note="Parts before their weights.",
        missing=NOT_LOGGED,
    ),
    Plan(
        title="Gate rate",
        y_title="fraction of responses",
        metrics=(("vapo/anchors/probed_fraction", "probed"),),
        note="Fraction of responses whose anchors were probed.",
        missing=_NO_ANCHORS,
        is_fraction=True,
    ),
    Plan(
        title="Anchor accuracy",
        y_title="accuracy",
        metrics=(
            ("vapo/anchors/accuracy", "all"),
            ("vapo/anchors/accuracy_early", "early third"),
            ("vapo/anchors/accuracy_late", "late third"),
        ),
        missing=_NO_ANCHORS,
        level=CHANCE,
        level_name="chance",
        is_fraction=True,
    ),
    Plan(
        title="Groups",
        y_title="fraction",
        metrics=(
            ("vapo/advantage/groups_right", "all correct"),
            ("vapo/advantage/groups_mixed", "mixed"),
            ("vapo/advantage/groups_wrong", "none correct"),
            ("vapo/advantage/perception_only", "of advantage: perception only"),
        ),
        note="Fractions of prompts by their answers, and the fraction of the sum of absolute "
        "advantages in groups whose rewards differ only in perception.",
        missing=NOT_LOGGED,
        is_fraction=True,
    ),
    Plan(
        title="Yes-rate",
        y_title="rate of yes",
        metrics=(("vapo/anchors/yes_rate", "yes"),),
        note="Far from one half, the policy answers without reading the image.",
        missing=_NO_ANCHORS,
        level=0.5,
        level_name="half",
        is_fraction=True,
    ),
    Plan(
        title="Visual attention",
        y_title="visual attention ratio",
        metrics=tuple((f"vapo/attention/{part}", part) for part in ("mean", "early", "late")),
        missing=_NO_ATTENTION,
    ),
    Plan(
        title="Slope of visual attention",
        y_title="change over a response",
        metrics=(("vapo/attention/slope", "slope"),),
        missing=_NO_ATTENTION,
        level=0.0,
        level_name="no change",
    ),
    Plan(
        title="Entropy",
        y_title="nats per token",
        metrics=(("actor/entropy", "entropy"),),
        missing=NOT_LOGGED,
    ),
    Plan(
        title="KL",
        y_title="nats per token",
        metrics=(
            ("actor/ppo_kl", "to the old policy"),
            ("actor/kl_loss", "to the reference"),
            ("rollout_corr/kl", "engine to trainer"),
        ),
        note="The reference's needs actor_rollout_ref.actor.use_kl_loss=true.",
        missing=NOT_LOGGED,
    ),
    Plan(
        title="Mismatch of engine and trainer",
        y_title="nats per token",
        metrics=((DIFF_MEAN, "mean"), (DIFF_MAX, "maximum")),
        note="Absolute difference of a token's log probability in the engine and in the trainer. "
        "The ratio's mean is 1 where nothing is wrong: see the next panel.",
        missing=_NO_LOG_PROBS,
    ),
    Plan(
        title="Rollout correction",
        y_title="ratio, weight or fraction",
        metrics=(
            (RATIO_MEAN, "mean ratio, trainer to engine"),
            ("rollout_corr/rollout_is_mean", "mean weight"),
            ("rollout_corr/rollout_is_eff_sample_size", "effective sample size"),
            ("rollout_corr/rollout_rs_masked_fraction", "tokens rejected"),
        ),
        note="algorithm.rollout_correction turns weights and rejection on.",
        missing=_NO_LOG_PROBS,
        level=1.0,
        level_name="no mismatch",
    ),
    Plan(
        title="Clip fraction",
        y_title="fraction of tokens",
        metrics=(("actor/pg_clipfrac", "clipped"), ("actor/pg_clipfrac_lower", "lower bound")),
        missing=NOT_LOGGED,
    ),
    Plan(
        title="Gradient norm",
        y_title="norm",
        metrics=(("actor/grad_norm", "before clipping"),),
        missing=NOT_LOGGED,
    ),
    Plan(
        title="Response length",
        y_title="tokens",
        metrics=tuple((f"response_length/{part}", part) for part in ("mean", "max", "min")),
        missing=NOT_LOGGED,
    ),
    Plan(
        title="Cut responses",
        y_title="fraction of responses",
        metrics=(("response_length/clip_ratio", "at the token limit"),),
        note="data.max_response_length is the limit.",
        missing=NOT_LOGGED,
    ),
    Plan(
        title="Throughput",
        y_title="tokens per second",
        metrics=(("perf/throughput", "per GPU or CPU worker"),),
        missing=NOT_LOGGED,
    ),
)
