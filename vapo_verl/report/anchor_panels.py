"""Anchor accuracy along the responses of a run, and calibration."""

from collections.abc import Sequence

import numpy as np

from vapo_verl.analysis.anchor_accuracy import NUM_POSITION_BINS, NUM_PROBABILITY_BINS, wilson
from vapo_verl.plots.panel import Panel, Series, missing_from, numbers
from vapo_verl.report.run_summary import RunSummary
from vapo_verl.reward.perception import CHANCE

_NO_ANCHORS = (
    "The sampled rollouts hold no anchors. vapo.anchors.num_anchors > 0 and a claims column in the"
    " data provide them; vapo.anchors.gate=always probes incorrect answers too."
)


def anchor_panels(runs: Sequence[RunSummary]) -> list[Panel]:
    """Accuracy by position, and calibration of p(yes)."""
    return [_accuracy_by_position(runs), _calibration(runs)]


def _accuracy_by_position(runs: Sequence[RunSummary]) -> Panel:
    series = []
    for place, run in enumerate(runs):
        if not run.anchors.num_anchors:
            continue
        some = run.anchors.asked > 0
        asked, right = run.anchors.asked[some], run.anchors.right[some]
        bounds = [wilson(int(r), int(n)) for r, n in zip(right, asked, strict=True)]
        series.append(
            Series(
                name="accuracy",
                x=numbers(((np.arange(NUM_POSITION_BINS) + 0.5) / NUM_POSITION_BINS)[some]),
                y=numbers(right / asked),
                low=numbers(low for low, _ in bounds),
                high=numbers(high for _, high in bounds),
                texts=[f"{r} of {n}" for r, n in zip(right, asked, strict=True)],
                run=place,
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
    for place, run in enumerate(runs):
        some = run.anchors.num_with_probability > 0
        asked, true = run.anchors.num_with_probability[some], run.anchors.true_of_bin[some]
        if not len(asked):
            continue
        bounds = [wilson(int(t), int(n)) for t, n in zip(true, asked, strict=True)]
        series.append(
            Series(
                name="claims that are true",
                x=numbers(run.anchors.probability_of_bin[some] / asked),
                y=numbers(true / asked),
                low=numbers(low for low, _ in bounds),
                high=numbers(high for _, high in bounds),
                texts=[f"{t} of {n}" for t, n in zip(true, asked, strict=True)],
                run=place,
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
