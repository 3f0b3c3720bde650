"""Visual attention of some responses as numbers for JSON, and as lines of a figure."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vapo_verl.analysis.position_curves import (
    AttentionCurves,
    RatioHistograms,
    progress_centres,
    response_attention,
    token_centres,
)
from vapo_verl.plots.panel import Numbers, Panel, Series, numbers


def ratios(values: np.ndarray) -> Numbers:
    """Visual attention [tokens] for a record; null where it is unknown."""
    return numbers(values.tolist())


def attention_summary(responses: Iterable[Sequence[float | None]]) -> dict[str, Any]:
    """Curves and means over responses; each response counts once.

    `by_progress` and `by_token` hold the median and the quartiles over responses, at progress t / T
    and at generated tokens; `slope` is the mean of least-squares slopes against progress.
    """
    curves, each = AttentionCurves(), []
    for values in responses:
        known = np.array(values, dtype=float)
        curves.add(known)
        each.append(response_attention(known))
    names = ("mean", "slope", "late_over_early")
    means = {name: _mean([getattr(response, name) for response in each]) for name in names}
    return {
        "num_responses": curves.num_responses,
        **means,
        "by_progress": _curve(curves.by_progress, progress_centres()),
        "by_token": _curve(curves.by_token, token_centres(curves.token_width)),
    }


def attention_panels(summaries: dict[str, dict[str, Any]]) -> list[Panel]:
    """By progress and by token, a line for each name."""
    shapes = (("by_progress", "progress t / T"), ("by_token", "generated token"))
    return [
        Panel(
            title=f"Visual attention {axis.replace('_', ' ')}",
            x_title=x_title,
            y_title="visual attention ratio",
            series=[
                Series(name=name, color=color, **summary[axis])
                for color, (name, summary) in enumerate(summaries.items())
            ],
            note="Median and quartiles over responses.",
        )
        for axis, x_title in shapes
    ]


def _curve(counts: RatioHistograms, where: np.ndarray) -> dict[str, Numbers]:
    some = counts.sizes() > 0
    low, middle, high = (numbers(counts.quantile(q)[some]) for q in (0.25, 0.5, 0.75))
    return {"x": numbers(where[some]), "y": middle, "low": low, "high": high}


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None
