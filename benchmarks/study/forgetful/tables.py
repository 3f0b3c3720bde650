"""Tables and paired tests over seeds of the comparisons in the world `forgetful_digits`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from benchmarks.study.arms import ALL_ARMS, BASELINE
from benchmarks.study.forgetful.compared import of_one_start, of_other_starts
from benchmarks.study.forgetful.outcome import Outcome
from benchmarks.study.forgetful.plan import ForgetfulPlan
from benchmarks.study.page import arms_table, paired_cells, title
from benchmarks.study.workspace import WARM_START
from vapo_verl.analysis.statistics import MIN_PAIRS, PairedDifference, paired_difference

TRAINING = {
    "groups all correct": "groups_right",
    "accuracy, sampled": "accuracy_sampled",
    "cells stated, sampled": "stated_sampled",
    "predictions alike": "agreement",
    "spread of R_perc": "spread",
    "perception's fraction": "perception_fraction",
    "KL": "kl",
}
"""Column and field, for training."""
MEASURES = {
    "claims late": "claims_late",
    "accuracy": "accuracy",
    "cells stated": "stated",
    "cells checked": "checked",
    "reads correct": "reads_right",
    "attention middle": "attention_middle",
    "late, cell stated": "late_stated",
    "late, cell not stated": "late_unstated",
    "claims early": "claims_early",
    "tokens": "tokens",
    "recoverable": "recoverable",
    "attention early": "attention_early",
    "attention late": "attention_late",
}
"""Column and field, for held-out rows."""
PRIMARY = "claims late"
TESTED = (
    *tuple(MEASURES)[:6],
    "groups all correct",
    "accuracy, sampled",
    "cells stated, sampled",
)
"""Columns of the measures that are tested over seeds."""
_FIELDS = MEASURES | TRAINING


def compare_by_seed(
    outcomes: Sequence[Outcome], plan: ForgetfulPlan
) -> dict[str, dict[str, PairedDifference]]:
    """Arm -> column -> the arm minus its `against` arm, over pairs of runs with the same seed.

    Arms and measures with fewer than two pairs are left out.
    """
    by_arm: dict[str, dict[int, Outcome]] = {}
    for outcome in outcomes:
        by_arm.setdefault(outcome.arm, {})[outcome.seed] = outcome
    against = {
        arm: by_arm.get(_against(arm, plan), {})
        for arm in by_arm
        if arm not in (BASELINE, WARM_START)
    }
    compared: dict[str, dict[str, PairedDifference]] = {}
    for arm, baseline in against.items():
        for column in TESTED:
            pair = [_values(runs, _FIELDS[column]) for runs in (baseline, by_arm[arm])]
            if len(pair[0].keys() & pair[1].keys()) >= MIN_PAIRS:
                compared.setdefault(arm, {})[column] = paired_difference(column, *pair)
    return compared


def _values(runs: Mapping[int, Outcome], measure: str) -> dict[int, float]:
    """Seed -> value, for the runs that have the measure."""
    values = {seed: float(getattr(run, measure)) for seed, run in runs.items()}
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


def _against(arm: str, plan: ForgetfulPlan) -> str:
    return plan.against.get(arm, ALL_ARMS[arm].against)


def holm(p_values: Sequence[float]) -> list[float]:
    """p adjusted for several tests (Holm 1979): the k-th smallest of m times m - k + 1, monotone.

    A p of nan (the test could not be made) counts as 1.
    """
    p_values = [1.0 if math.isnan(p) else p for p in p_values]
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = highest
    return adjusted


def tables(outcomes: Mapping[str, Sequence[Outcome]], plan: ForgetfulPlan) -> str:
    """Results and paired tests of each strength, as Markdown."""
    parts = []
    for memory, of_memory in outcomes.items():
        found = of_one_start(of_memory, plan)
        if not found:
            continue
        label = _labels(found)
        parts.append(f"Forgetting: memory {memory}")
        parts.append(arms_table(tuple(MEASURES.items()), found, label))
        trained = [outcome for outcome in found if outcome.arm != WARM_START]
        if trained:
            parts.append(arms_table(tuple(TRAINING.items()), trained, label))
        if compared := compare_by_seed(found, plan):
            parts.append(_comparison(compared, plan))
        for start, repeated in of_other_starts(of_memory, plan).items():
            of_start = compare_by_seed(repeated, plan)
            if tested := {arm: of_start[arm] for arm in plan.tested if arm in of_start}:
                parts.append(_repetition(start, tested, plan))
    return "\n\n".join(parts)


def _labels(found: Sequence[Outcome]) -> Callable[[Outcome], str]:
    """Names a line by its arm, its number of runs and, where there are several, its warm start."""
    several = len({each.start for each in found}) > 1
    runs = Counter((each.arm, each.start) for each in found)

    def label(run: Outcome) -> str:
        start = f", from {run.start}" if several else ""
        number = "" if run.arm == WARM_START else f" (n = {runs[run.arm, run.start]})"
        return f"{title(run.arm)}{start}{number}"

    return label


def _comparison(compared: Mapping[str, Mapping[str, PairedDifference]], plan: ForgetfulPlan) -> str:
    """p of the primary measure is adjusted over all arms that the plan tests; arms that have not
    run count with p = 1. Other measures are not adjusted."""
    p_values = [compared[arm][PRIMARY].p_t if arm in compared else 1.0 for arm in plan.tested]
    adjusted = dict(zip(plan.tested, holm(p_values), strict=True))
    lines = [
        "| | minus | measure | difference over seeds | p | Holm |",
        "|---|---|---|---|---|---|",
    ]
    for arm, by_column in compared.items():
        for column, pairs in by_column.items():
            cells = " | ".join(paired_cells(pairs))
            of_all = f"{adjusted[arm]:.2g}" if column == PRIMARY and arm in adjusted else ""
            names = (title(arm), title(_against(arm, plan)), column)
            lines.append(f"| {' | '.join(names)} | {cells} | {of_all} |")
    return "\n".join(lines)


def _repetition(
    start: str, compared: Mapping[str, Mapping[str, PairedDifference]], plan: ForgetfulPlan
) -> str:
    """The primary measure in runs of the same arms and seeds from another warm start."""
    lines = [
        f"{PRIMARY.capitalize()}, seeds of the table above from another warm start, {start}:",
        "",
        "| | minus | difference over seeds | p |",
        "|---|---|---|---|",
    ]
    for arm, by_column in compared.items():
        cells = (title(arm), title(_against(arm, plan)), *paired_cells(by_column[PRIMARY]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
