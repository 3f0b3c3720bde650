"""Paired differences of two runs, as tables."""

import math
from collections.abc import Sequence

from vapo_verl.analysis.statistics import PairedDifference, paired_difference
from vapo_verl.plots.html import NONE, Table, shown
from vapo_verl.report.early_panel import QUANTITIES as EARLY_QUANTITIES
from vapo_verl.report.early_panel import early_rows
from vapo_verl.report.run_summary import QUANTITIES, RunSummary

SMALLEST_P = 1e-6
"""Smaller p are shown as a bound: the tests' assumptions do not hold that far."""
COMPARED_METRICS = (
    "vapo/reward/total",
    "vapo/reward/accuracy",
    "vapo/reward/format",
    "vapo/reward/perception",
    "vapo/anchors/probed_fraction",
    "vapo/anchors/accuracy",
    "vapo/anchors/accuracy_early",
    "vapo/anchors/accuracy_late",
    "vapo/anchors/yes_rate",
    "vapo/attention/mean",
    "vapo/attention/slope",
    "actor/entropy",
    "actor/kl_loss",
    "actor/pg_clipfrac",
    "response_length/mean",
    "perf/throughput",
    "timing_s/step",
)


def comparison(a: RunSummary, b: RunSummary) -> list[Table]:
    """Paired differences over common steps, common prompts and common early-decision rows."""
    steps = [
        paired_difference(name, a.metrics.series(name), b.metrics.series(name))
        for name in COMPARED_METRICS
    ]
    prompts = [
        paired_difference(name, a.prompts.means(name), b.prompts.means(name)) for name in QUANTITIES
    ]
    return [
        _differences(
            "Common steps",
            "step",
            steps,
            "Steps of a run depend on each other, so that p is too small; read it as a hint.",
        ),
        _differences(
            "Common prompts",
            "prompt",
            prompts,
            "A pair is the same row of the data (data"
            " source and index) at the same step, with the mean of its sampled responses.",
        ),
        *_early_decision(a, b),
    ]


def _early_decision(a: RunSummary, b: RunSummary) -> list[Table]:
    first, second = a.early_decision, b.early_decision
    if first is None or second is None:
        return []
    found = [
        paired_difference(name, early_rows(first, name), early_rows(second, name))
        for name in EARLY_QUANTITIES
    ]
    note = "A pair is the same row of the data; both runs need early decisions on the same file."
    return [_differences("Common early-decision rows", "row", found, note)]


def _differences(title: str, what: str, found: Sequence[PairedDifference], note: str) -> Table:
    header = ["", "n", "mean A", "mean B", "B − A", "95 % interval", "p (t)", "p (Wilcoxon)"]
    if not any(each.n for each in found):
        return Table(
            title=title, header=header[:1], rows=[], note=f"No common {what}: nothing to pair."
        )
    rows = [
        [
            each.quantity,
            str(each.n),
            shown(each.mean_a),
            shown(each.mean_b),
            shown(each.difference),
            f"{shown(each.low)} to {shown(each.high)}" if math.isfinite(each.low) else NONE,
            _probability(each.p_t),
            _probability(each.p_wilcoxon),
        ]
        for each in found
        if each.n
    ]
    return Table(title=title, header=header, rows=rows, note=f"n is the number of pairs. {note}")


def _probability(p: float) -> str:
    return f"< {SMALLEST_P:g}" if p < SMALLEST_P else shown(p, 2)
