"""Tables of the report."""

import math
from collections.abc import Sequence

import numpy as np

from vapo_verl.analysis.attention_curves import half_life, progress_centres, token_centres
from vapo_verl.plots.html import NONE, Table, shown
from vapo_verl.report.run_summary import RunSummary


def overview(runs: Sequence[RunSummary]) -> Table:
    """Contents of each run, and its last values."""
    return Table(
        title="Overview",
        header=["", *[run.name for run in runs]],
        rows=[
            ["steps logged", *[str(run.metrics.num_steps) for run in runs]],
            ["last step", *[_last_step(run) for run in runs]],
            ["rollout files", *[str(run.num_files) for run in runs]],
            ["sampled responses", *[str(run.num_responses) for run in runs]],
            *[
                [name, *[_last(run, metric) for run in runs]]
                for name, metric in (
                    ("reward, last step", "vapo/reward/total"),
                    ("accuracy, last step", "vapo/reward/accuracy"),
                    ("anchor accuracy, last step", "vapo/anchors/accuracy"),
                    ("visual attention, last step", "vapo/attention/mean"),
                )
            ],
        ],
    )


def forgetting(runs: Sequence[RunSummary]) -> Table:
    """Slope, ratio and half-lives of attention, and statistics of all anchors."""
    columns = [_forgetting_column(run) for run in runs]
    names = [name for name, _ in columns[0]]
    rows = [[name, *[column[i][1] for column in columns]] for i, name in enumerate(names)]
    return Table(
        title="Forgetting in numbers",
        header=["", *[run.name for run in runs]],
        rows=rows,
        note="Slope and late / early: median (quartiles) over prompts, each with the mean of its"
        " responses. Half-life: from the first point of the median curve to where it has fallen to"
        " half; – if it never does.",
    )


def _forgetting_column(run: RunSummary) -> list[tuple[str, str]]:
    curves, anchors = run.curves, run.anchors
    by_progress, by_token = curves.by_progress.quantile(0.5), curves.by_token.quantile(0.5)
    labels_true = anchors.num_labels_true / anchors.num_anchors if anchors.num_anchors else math.nan
    return [
        ("responses with attention", str(curves.num_responses)),
        ("slope over a response", _quartiles(run, "attention slope")),
        ("late third / early third", _quartiles(run, "attention late / early")),
        ("half-life, fraction of a response", shown(half_life(progress_centres(), by_progress))),
        ("half-life, tokens", shown(half_life(token_centres(curves.token_width), by_token))),
        ("anchors", str(anchors.num_anchors)),
        ("anchor accuracy", shown(anchors.accuracy())),
        ("true claims among them", shown(labels_true)),
        ("Brier score of p(yes)", shown(anchors.brier())),
        ("calibration error of p(yes)", shown(anchors.calibration_error())),
    ]


def _quartiles(run: RunSummary, quantity: str) -> str:
    values = list(run.prompts.means(quantity).values())
    if not values:
        return NONE
    low, middle, high = (float(each) for each in np.quantile(values, [0.25, 0.5, 0.75]))
    return f"{shown(middle)} ({shown(low)} to {shown(high)})"


def _last_step(run: RunSummary) -> str:
    steps = [max(column) for column in run.metrics.columns.values()]
    return str(max(steps)) if steps else NONE


def _last(run: RunSummary, metric: str) -> str:
    values = list(run.metrics.series(metric).values())
    return shown(values[-1]) if values else NONE
