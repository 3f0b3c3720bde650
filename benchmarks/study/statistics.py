"""Paired tests of every arm against the baseline, over held-out rows and over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.study.arms import BASELINE
from benchmarks.study.figures import Figures, ItemOutcome
from benchmarks.study.workspace import Run
from vapo_verl.analysis.statistics import PairedDifference, paired_difference

ITEM_MEASURES: dict[str, Callable[[ItemOutcome], float | None]] = {
    "accuracy": lambda item: item.right,
    "claims_late": lambda item: item.claims_late,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """An arm minus the baseline, in one measure."""

    arm: str
    measure: str
    over_rows: PairedDifference
    """Pairs are rows, each the mean over seeds: generalises to other rows of these runs."""
    over_seeds: PairedDifference
    """Pairs are runs with the same seed: generalises to other runs. With 3 seeds t must exceed
    4.3 to be significant, and Wilcoxon's p cannot be below 0.25."""


def compare(
    figures: Sequence[Figures], outcomes: Sequence[ItemOutcome], runs: Sequence[Run]
) -> list[Comparison]:
    """All other arms against :data:`benchmarks.study.arms.BASELINE`, over seeds that both have."""
    arms = dict.fromkeys(run.arm for run in runs if run.arm != BASELINE)
    return [_compare(arm, name, figures, outcomes, runs) for arm in arms for name in ITEM_MEASURES]


def _compare(
    arm: str,
    measure: str,
    figures: Sequence[Figures],
    outcomes: Sequence[ItemOutcome],
    runs: Sequence[Run],
) -> Comparison:
    of_arm = {name: {run.seed for run in runs if run.arm == name} for name in (BASELINE, arm)}
    seeds = of_arm[BASELINE] & of_arm[arm]
    by_seed = {
        name: {f.seed: getattr(f, measure) for f in figures if f.arm == name and f.seed in seeds}
        for name in (BASELINE, arm)
    }
    return Comparison(
        arm=arm,
        measure=measure,
        over_rows=over_rows(measure, outcomes, BASELINE, arm, seeds),
        over_seeds=paired_difference(measure, by_seed[BASELINE], by_seed[arm]),
    )


def over_rows(
    measure: str, outcomes: Sequence[ItemOutcome], baseline: str, arm: str, seeds: Collection[int]
) -> PairedDifference:
    """The arm minus the baseline; pairs are rows, each the mean over the runs with these seeds."""
    runs = [{Run(arm=name, seed=seed).name for seed in seeds} for name in (baseline, arm)]
    return paired_difference(measure, *(_row_means(outcomes, measure, names) for names in runs))


def _row_means(
    outcomes: Sequence[ItemOutcome], measure: str, runs: set[str]
) -> Mapping[int, float]:
    values: defaultdict[int, list[float]] = defaultdict(list)
    for item in outcomes:
        value = ITEM_MEASURES[measure](item)
        if item.run in runs and value is not None:
            values[item.row].append(value)
    return {row: float(np.mean(of_row)) for row, of_row in values.items()}
