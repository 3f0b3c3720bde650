"""Panels from the rollout files: anchor accuracy, calibration, and visual attention."""

from collections.abc import Sequence

import numpy as np

from vapo_verl.analysis.position_curves import (
    NUM_POSITION_BINS,
    NUM_PROBABILITY_BINS,
    RatioHistograms,
    progress_centres,
    token_centres,
    wilson,
)
from vapo_verl.plots.panel import Heat, Panel, Series, missing_from, numbers
from vapo_verl.report.run_summary import RunSummary
from vapo_verl.reward.perception import CHANCE

_NO_ANCHORS = (
    "The sampled rollouts hold no anchors. vapo.anchors.num_anchors > 0 and a claims column in the"
    " data provide them; vapo.anchors.gate=always probes incorrect answers too."
)
_NO_ATTENTION = (
    "The sampled rollouts hold no visual attention. vapo.attention.enabled=true provides it."
)
_NO_LAYERS = (
    "The sampled rollouts hold no values per layer. vapo.attention.per_layer=true, with"
    " vapo.attention.enabled=true, provides them."
)


def anchor_panels(runs: Sequence[RunSummary]) -> list[Panel]:
    """Accuracy by position, and calibration of p(yes)."""
    return [_accuracy_by_position(runs), _calibration(runs)]


def _accuracy_by_position(runs: Sequence[RunSummary]) -> Panel:
    series = []
    for number, run in enumerate(runs):
        if not run.anchors.num_anchors:
            continue
        some = run.anchors.num_probed > 0
        probed, correct = run.anchors.num_probed[some], run.anchors.num_correct[some]
        bounds = [wilson(int(c), int(n)) for c, n in zip(correct, probed, strict=True)]
        series.append(
            Series(
                name="accuracy",
                x=numbers(((np.arange(NUM_POSITION_BINS) + 0.5) / NUM_POSITION_BINS)[some]),
                y=numbers(correct / probed),
                low=numbers(low for low, _ in bounds),
                high=numbers(high for _, high in bounds),
                texts=[f"{c} of {n}" for c, n in zip(correct, probed, strict=True)],
                run=number,
                bars=True,
            )
        )
    return Panel(
        title="Anchor accuracy by position",
        x_title="anchor's progress a / T",
        y_title="accuracy",
        series=series,
        level=CHANCE,
        level_name="chance",
        note="95 % Wilson intervals, as if anchors were independent.",
        missing=missing_from([run.name for run in runs], series, _NO_ANCHORS),
        y_range=(0.0, 1.0),
    )


def _calibration(runs: Sequence[RunSummary]) -> Panel:
    series = []
    for number, run in enumerate(runs):
        some = run.anchors.num_with_probability > 0
        probed, true = run.anchors.num_with_probability[some], run.anchors.true_of_bin[some]
        if not len(probed):
            continue
        bounds = [wilson(int(t), int(n)) for t, n in zip(true, probed, strict=True)]
        series.append(
            Series(
                name="claims that are true",
                x=numbers(run.anchors.probability_of_bin[some] / probed),
                y=numbers(true / probed),
                low=numbers(low for low, _ in bounds),
                high=numbers(high for _, high in bounds),
                texts=[f"{t} of {n}" for t, n in zip(true, probed, strict=True)],
                run=number,
                bars=True,
            )
        )
    return Panel(
        title="Calibration of p(yes)",
        x_title=f"mean p(yes) in each of {NUM_PROBABILITY_BINS} bins",
        y_title="fraction of true claims",
        series=series,
        diagonal=True,
        note="On the diagonal p(yes) is calibrated. 95 % Wilson intervals.",
        missing=missing_from([run.name for run in runs], series, _NO_ANCHORS),
        y_range=(0.0, 1.0),
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
        _curve(run.curves.by_progress, progress_centres(), number, "responses")
        for number, run in enumerate(runs)
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
        _curve(run.curves.by_token, token_centres(run.curves.token_width), number, "tokens")
        for number, run in enumerate(runs)
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


def _curve(counts: RatioHistograms, where: np.ndarray, run: int, what: str) -> Series:
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
        names = [f"captured layer {column}" for column in range(means.shape[1])]
    heat = Heat(x=numbers(progress_centres()), y=names, values=[numbers(row) for row in means.T])
    return Panel(title=title, x_title=x_title, y_title=y_title, heat=heat, note="Mean over tokens.")
