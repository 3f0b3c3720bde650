"""Visual attention along the responses of a run."""

from collections.abc import Sequence

import numpy as np

from vapo_verl.analysis.attention_curves import (
    ShareHistograms,
    progress_centres,
    token_centres,
)
from vapo_verl.plots.panel import Heat, Panel, Series, missing_from, numbers
from vapo_verl.report.run_summary import RunSummary

_NO_ATTENTION = (
    "The sampled rollouts hold no visual attention. vapo.attention.enabled=true provides it."
)
_NO_LAYERS = (
    "The sampled rollouts hold no values per layer. vapo.attention.per_layer=true, with"
    " vapo.attention.enabled=true, provides them."
)


def attention_panels(runs: Sequence[RunSummary]) -> list[Panel]:
    """The ratio by progress and by token, and a heat map of each run's layers."""
    return [
        _by_progress(runs),
        _by_token(runs),
        *[_heat_map(run, len(runs) > 1) for run in runs],
    ]


def _by_progress(runs: Sequence[RunSummary]) -> Panel:
    series = [
        _curve(run.curves.by_progress, progress_centres(), place, "responses")
        for place, run in enumerate(runs)
        if run.curves.num_responses
    ]
    return Panel(
        title="Visual attention by progress",
        x_title="progress t / T",
        y_title="visual attention ratio",
        series=series,
        note="Median and quartiles over responses, each with its mean in the bin.",
        missing=missing_from([run.name for run in runs], series, _NO_ATTENTION),
    )


def _by_token(runs: Sequence[RunSummary]) -> Panel:
    series = [
        _curve(run.curves.by_token, token_centres(run.curves.token_width), place, "tokens")
        for place, run in enumerate(runs)
        if run.curves.num_responses
    ]
    widths = " and ".join(str(run.curves.token_width) for run in runs)
    return Panel(
        title="Visual attention by token",
        x_title="generated token",
        y_title="visual attention ratio",
        series=series,
        note=f"Median and quartiles; neighbouring tokens per point: {widths}. Only long responses"
        " reach the right end.",
        missing=missing_from([run.name for run in runs], series, _NO_ATTENTION),
    )


def _curve(counts: ShareHistograms, where: np.ndarray, run: int, what: str) -> Series:
    sizes = counts.sizes()
    some = sizes > 0
    low, middle, high = (counts.quantile(q)[some] for q in (0.25, 0.5, 0.75))
    return Series(
        name="median",
        x=numbers(where[some]),
        y=numbers(middle),
        low=numbers(low),
        high=numbers(high),
        texts=[f"{size} {what}" for size in sizes[some]],
        run=run,
    )


def _heat_map(run: RunSummary, several: bool) -> Panel:
    means = run.curves.layer_means()
    title = f"Visual attention by layer: {run.name}" if several else "Visual attention by layer"
    x_title, y_title = "progress t / T", ""
    if means is None:
        return Panel(title=title, x_title=x_title, y_title=y_title, missing=_NO_LAYERS)
    names = [f"layer {layer}" for layer in run.curves.layers]
    if len(names) != means.shape[1]:
        names = [f"captured layer {place}" for place in range(means.shape[1])]
    heat = Heat(x=numbers(progress_centres()), y=names, values=[numbers(row) for row in means.T])
    return Panel(title=title, x_title=x_title, y_title=y_title, heat=heat, note="Mean over tokens.")
