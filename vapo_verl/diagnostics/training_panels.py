"""The curves of a run over its steps."""

from __future__ import annotations

from collections.abc import Sequence

from vapo_verl.diagnostics.panel import Panel, Series, missing_from, numbers
from vapo_verl.diagnostics.run_summary import RunSummary
from vapo_verl.diagnostics.training_plans import NOT_LOGGED, PLANS, Plan


def training_panels(runs: Sequence[RunSummary]) -> list[Panel]:
    """One panel per plan; then time per phase and validation, whose metrics the runs name."""
    phases = _found(runs, "timing_s/")
    validation = _found(runs, "val-core/")
    plans = [
        *PLANS,
        Plan(
            title="Time per phase",
            y_title="seconds",
            metrics=phases,
            note="step is the whole; a phase may hold others.",
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


def _found(runs: Sequence[RunSummary], prefix: str) -> tuple[tuple[str, str], ...]:
    names = sorted({name for run in runs for name in run.metrics.names(prefix)})
    return tuple((name, name.removeprefix(prefix)) for name in names)


def _panel(plan: Plan, runs: Sequence[RunSummary]) -> Panel:
    series = []
    for place, run in enumerate(runs):
        for color, (metric, name) in enumerate(plan.metrics):
            column = run.metrics.series(metric)
            if column:
                series.append(
                    Series(
                        name=name,
                        x=numbers(column),
                        y=numbers(column.values()),
                        run=place,
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
        y_range=(0.0, 1.0) if plan.share else None,
    )
