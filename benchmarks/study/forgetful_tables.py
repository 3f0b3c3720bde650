"""Tables and paired tests over seeds of the comparisons in the world `forgetful_digits`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from benchmarks.study.arms import ALL_ARMS, BASELINE
from benchmarks.study.forgetful import MEASURES, NUM_TESTED, TRAINING, ForgetfulPlan, Outcome
from benchmarks.study.page import arms_table, paired_cells, title
from benchmarks.study.workspace import WARM_START
from vapo_verl.analysis.statistics import MIN_PAIRS, PairedDifference, paired_difference


def compare_by_seed(
    outcomes: Sequence[Outcome], plan: ForgetfulPlan
) -> dict[str, dict[str, PairedDifference]]:
    """By arm and measure: the arm minus that it is compared with, in pairs of runs with one seed.

    Arms with fewer than two pairs are left out.
    """
    by_arm: dict[str, dict[int, Outcome]] = {}
    for outcome in outcomes:
        by_arm.setdefault(outcome.arm, {})[outcome.seed] = outcome
    against = {
        arm: by_arm.get(_against(arm, plan), {})
        for arm in by_arm
        if arm not in (BASELINE, WARM_START)
    }
    tested = list(MEASURES.values())[:NUM_TESTED]
    return {
        arm: {
            measure: paired_difference(
                measure,
                *({s: getattr(of[s], measure) for s in seeds} for of in (baseline, by_arm[arm])),
            )
            for measure in tested
        }
        for arm, baseline in against.items()
        if len(seeds := sorted(baseline.keys() & by_arm[arm].keys())) >= MIN_PAIRS
    }


def _against(arm: str, plan: ForgetfulPlan) -> str:
    return plan.against.get(arm, ALL_ARMS[arm].against)


def holm(p_values: Sequence[float]) -> list[float]:
    """p adjusted for several tests (Holm 1979): the k-th smallest of m times m - k + 1, monotone.

    A p that is nan, of a test that could not be made, counts as 1.
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
    for memory, found in outcomes.items():
        if not found:
            continue
        parts.append(f"Forgetting: memory {memory}")
        parts.append(arms_table(tuple(MEASURES.items()), found))
        trained = [outcome for outcome in found if outcome.arm != WARM_START]
        if trained:
            parts.append(arms_table(tuple(TRAINING.items()), trained))
        if compared := compare_by_seed(found, plan):
            parts.append(_comparison(compared, plan))
    return "\n\n".join(parts)


def _comparison(compared: Mapping[str, Mapping[str, PairedDifference]], plan: ForgetfulPlan) -> str:
    """p of the primary measure is adjusted over all arms that the plan tests, those to come with
    a p of 1; the others are not adjusted."""
    primary = next(iter(MEASURES.values()))
    p_values = [compared[arm][primary].p_t if arm in compared else 1.0 for arm in plan.tested]
    adjusted = dict(zip(plan.tested, holm(p_values), strict=True))
    lines = [
        "| | minus | measure | difference over seeds | p | Holm |",
        "|---|---|---|---|---|---|",
    ]
    columns = {measure: column for column, measure in MEASURES.items()}
    for arm, by_measure in compared.items():
        for measure, pairs in by_measure.items():
            cells = " | ".join(paired_cells(pairs))
            of_all = f"{adjusted[arm]:.2g}" if measure == primary and arm in adjusted else ""
            names = (title(arm), title(_against(arm, plan)), columns[measure])
            lines.append(f"| {' | '.join(names)} | {cells} | {of_all} |")
    return "\n".join(lines)
