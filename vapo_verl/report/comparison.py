"""Tables of the report: early decision, and paired differences of two runs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vapo_verl.analysis.statistics import PairedDifference, Rate, paired_difference
from vapo_verl.evaluation.early_decision import EarlyDecision, accuracy_by_cut, summarise
from vapo_verl.plots.html import NONE, Table, shown
from vapo_verl.plots.panel import Panel, Series, missing_from, numbers
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
NO_EARLY_DECISION = (
    "No early-decision run was made. python -m vapo_verl.evaluation early-decision MODEL DATA"
    " --run RUN_DIR makes one."
)
_SAME_FILE = "Both runs need early decisions on the same file."
_SAME_OPTIONS = "Make both early decisions with the same options."
_ROWS = (
    "responses",
    "correct with all reasoning",
    "correct with no reasoning",
    "peak",
    "last cut − peak",
    "recoverable by any cut, of errors",
    "recoverable by any cut, of all",
    "recoverable by a single cut, of errors",
    "recoverable by a single cut, of all",
)
EARLY_QUANTITIES = (
    "correct with no reasoning",
    "correct at any earlier cut",
    "correct with all reasoning",
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
    title = "Common early-decision rows"
    if first.data != second.data:
        names = [each.data or "a file that its folder does not name" for each in (first, second)]
        return _unpaired(title, f"A is on {names[0]}, B on {names[1]}. {_SAME_FILE}")
    if other := _differing(first.options, second.options):
        return _unpaired(title, f"{other}. {_SAME_OPTIONS}")
    found = [
        paired_difference(name, early_rows(first, name), early_rows(second, name))
        for name in EARLY_QUANTITIES
    ]
    note = f"A pair is the same row of the data. {_SAME_FILE}"
    return [_differences(title, "row", found, note)]


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} is {a.get(name)!r} in A and {b.get(name)!r} in B"
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    )


def _unpaired(title: str, why: str) -> list[Table]:
    return [Table(title=title, header=[""], rows=[], note=f"Nothing to pair: {why}")]


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


def early_panel(runs: Sequence[RunSummary]) -> Panel:
    """Accuracy of forced answers by the fraction of the reasoning before them."""
    series = [
        _curve(run.early_decision, number)
        for number, run in enumerate(runs)
        if run.early_decision is not None
    ]
    return Panel(
        title="Early decision",
        x_title="fraction of the reasoning kept",
        y_title="accuracy",
        series=series,
        note="An answer is forced after each cut of the same responses. 95 % Wilson intervals.",
        missing=missing_from([run.name for run in runs], series, NO_EARLY_DECISION),
        y_range=(0.0, 1.0),
    )


def early_table(runs: Sequence[RunSummary]) -> Table | None:
    """Peak, drop and recoverable rows of the runs; None if no run has early decisions."""
    if all(run.early_decision is None for run in runs):
        return None
    columns = [_column(run) for run in runs]
    return Table(
        title="Early decision in numbers",
        header=["", *[run.name for run in runs]],
        rows=[[name, *[column.get(name, NONE) for column in columns]] for name in _ROWS],
        note="Recoverable: incorrect with all reasoning, correct at an earlier cut. Over any cut it"
        " is an upper bound, as the cut is not known beforehand; the single cut is the one that"
        " recovers most. The peak is the best of all cuts on the same rows, so the drop is somewhat"
        " too large. 95 % intervals.",
    )


def early_rows(decision: EarlyDecision, quantity: str) -> dict[str, float]:
    """Row of the data -> 1 if `quantity` holds for its response, else 0."""
    correct = decision.right()
    values = {
        "correct with no reasoning": correct[:, 0],
        "correct at any earlier cut": correct[:, :-1].max(axis=1),
        "correct with all reasoning": correct[:, -1],
    }[quantity]
    names = (f"{row.data_source}\t{row.row}" for row in decision.rows)
    return dict(zip(names, values.astype(float).tolist(), strict=True))


def _column(run: RunSummary) -> dict[str, str]:
    if run.early_decision is None:
        return {}
    found = summarise(run.early_decision)
    cuts, peak, drop = found["cuts"], found["peak"], found["drop_from_peak"]
    any_cut, single = found["recoverable_any"], found["recoverable_single"]
    at_peak, at_single = (f" at {each['target']:.0%}" for each in (peak, single))
    interval = f"{shown(drop['low'])} to {shown(drop['high'])}"
    values = (
        str(found["num_rows"]),
        _shown_rate(cuts[-1]["share"]),
        _shown_rate(cuts[0]["share"]),
        _shown_rate(peak["share"]) + at_peak,
        f"{shown(drop['difference'])} ({interval}), p {shown(drop['p'], 2)}",
        _shown_rate(any_cut["of_errors"]),
        _shown_rate(any_cut["of_rows"]),
        _shown_rate(single["of_errors"]) + at_single,
        _shown_rate(single["of_rows"]) + at_single,
    )
    return dict(zip(_ROWS, values, strict=True))


def _shown_rate(rate: Rate) -> str:
    """``0.25 (0.1 to 0.4), 5 of 20``"""
    if rate["share"] is None or rate["low"] is None or rate["high"] is None:
        return NONE
    interval = f"{shown(rate['low'])} to {shown(rate['high'])}"
    return f"{shown(rate['share'])} ({interval}), {rate['num']} of {rate['of']}"


def _curve(decision: EarlyDecision, run: int) -> Series:
    cuts = accuracy_by_cut(decision)
    rates = [cut["share"] for cut in cuts]
    return Series(
        name="accuracy",
        x=numbers(cut["target"] for cut in cuts),
        y=numbers(rate["share"] for rate in rates),
        low=numbers(rate["low"] for rate in rates),
        high=numbers(rate["high"] for rate in rates),
        texts=[f"{rate['num']} of {rate['of']}" for rate in rates],
        run=run,
    )
