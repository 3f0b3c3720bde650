"""The study with other settings, one seed each, on validation rows.

Test rows are not used: a setting chosen from these results can still be tested on them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from benchmarks.study.arms import ALL_ARMS, BASELINE, FULL, VARIANTS
from benchmarks.study.credit import read_credit
from benchmarks.study.figures import read_outcomes
from benchmarks.study.measuring import VALIDATION_FOLDER
from benchmarks.study.reads import read_scenes, summarise_reads
from benchmarks.study.statistics import ITEM_MEASURES, over_rows
from benchmarks.study.workspace import VALIDATION, Run, Workspace
from vapo_verl.analysis.statistics import PairedDifference
from vapo_verl.evaluation.perception.perception_command import summarise
from vapo_verl.evaluation.probing.journal import read_records

_SEED = 0
_STUDIED = (BASELINE, "vapo")
"""Arms of the study, with its runs of all seeds; these show the spread between seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One run; its training metrics are means over its steps, as in `Credit`."""

    arm: str
    seed: int
    accuracy: float
    """Of greedy responses to the validation rows, like the next three."""
    claims_late: float
    reads: float
    """Statements about cells in a response."""
    tokens: float
    accuracy_last: float
    """In training, last quarter."""
    agreement: float
    spread: float
    groups_mixed: float
    perception_only: float
    kl: float


_LEARNT = ("accuracy_last", "agreement", "spread", "groups_mixed", "perception_only", "kl")


def all_runs() -> list[Run]:
    """All runs, the study's first."""
    studied = [Run(arm=arm, seed=seed) for seed in FULL.seeds for arm in _STUDIED]
    return studied + [Run(arm=arm, seed=_SEED) for arm in VARIANTS]


def read_variant(work: Workspace, run: Run) -> Variant:
    """Read the results of `measure_on_validation_rows` and the training metrics of a run."""
    records = read_records(work.folder(run.name) / "diagnostics" / VALIDATION_FOLDER)
    summary, credit = summarise(records), read_credit(work, run)
    return Variant(
        arm=run.arm,
        seed=run.seed,
        accuracy=summary["accuracy"]["share"],
        claims_late=summary["claims"]["late"]["share"],
        reads=summarise_reads(records, read_scenes(work.data / VALIDATION)).number,
        tokens=summary["mean_tokens"],
        **{name: getattr(credit, name) for name in _LEARNT},
    )


def compare_variants(work: Workspace) -> dict[str, dict[str, PairedDifference]]:
    """Arm -> measure -> each arm but GRPO minus its `against` arm, over its own seeds.

    Pairs are rows. One seed generalises to other rows, but not to other runs.
    """
    runs = all_runs()
    outcomes = [item for run in runs for item in read_outcomes(work, run, VALIDATION_FOLDER)]
    seeds: defaultdict[str, set[int]] = defaultdict(set)
    for run in runs:
        seeds[run.arm].add(run.seed)
    return {
        arm: {
            measure: over_rows(measure, outcomes, ALL_ARMS[arm].against, arm, of_arm)
            for measure in ITEM_MEASURES
        }
        for arm, of_arm in seeds.items()
        if arm != BASELINE
    }
