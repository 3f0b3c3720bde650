"""The comparisons in the world `forgetful_digits`: see plan.md for what they are to show.

Each strength of forgetting has a warm start and a workspace of its own, trained with the same rows,
arms and seeds. What is finished is reported; the same command goes on with the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study import arms
from benchmarks.study.arms import ALL_ARMS, BASELINE, CONTROL, Plan
from benchmarks.study.credit import read_credit
from benchmarks.study.figures import late_claims
from benchmarks.study.measuring import OTHER_IMAGE_FOLDER
from benchmarks.study.page import arms_table, paired_cells, title
from benchmarks.study.reads import cells_stated, read_scenes, reads_of
from benchmarks.study.workspace import TEST, WARM_START, Run, StudyError, Workspace
from vapo_verl.analysis.statistics import MIN_PAIRS, PairedDifference, paired_difference
from vapo_verl.digits.scene import Scene
from vapo_verl.evaluation.early_decision import load_early_decision
from vapo_verl.evaluation.early_decision import summarise as summarise_early
from vapo_verl.evaluation.perception.perception_command import summarise
from vapo_verl.evaluation.probing.journal import read_records

NO_SEED = -1
"""Of the warm start."""
ALPHA = 0.05
_CONCLUSION = "the largest is"
"""Sentences after the last one of these are not needed for the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetfulPlan(Plan):
    """A plan for each strength of forgetting."""

    memories: tuple[str, ...]
    """`--memory` of each warm start; its folder has this name."""
    start_steps: int
    """Of the warm start's training."""
    known: tuple[str, ...] = (BASELINE,)
    """Arms that are tested in another part, or nowhere: p is adjusted over the others."""
    against: Mapping[str, str] = field(default_factory=dict)
    """Arm -> the arm it is compared with in this part, if not its own `against`."""

    @property
    def tested(self) -> tuple[str, ...]:
        """Arms over which p of the primary measure is adjusted, done or not."""
        return tuple(arm for arm in self.arms if arm not in self.known)

    def size(self) -> dict[str, Any]:
        """Runs of any arm, seed and strength stand beside each other."""
        mixed = ("arms", "seeds", "memories", "known", "against")
        return {name: value for name, value in asdict(self).items() if name not in mixed}


MAIN = ForgetfulPlan(
    arms=(BASELINE, "vapo", "gamma_1", "decoupled", "no_gate"),
    seeds=(1, 2, 3, 4, 5),
    num_steps=48,
    num_train_rows=1600,
    num_test_rows=256,
    memories=("18", "none"),
    start_steps=1000,
)
ALONE = replace(MAIN, arms=(CONTROL,), seeds=(1,), memories=("18",))
"""The control of the comparison: it must move, or the comparison means nothing."""
SIGNAL = replace(
    MAIN,
    arms=(BASELINE, "decoupled", *arms.SIGNAL),
    seeds=(1, 2, 3),
    memories=("18",),
    known=(BASELINE, "decoupled"),
)
"""What makes the perception reward a signal; GRPO and `decoupled` are runs of the comparison."""
_BY_ATTENTION = ("vapo_focus", "vapo_grounded", "attention_reward")
NEIGHBOURS = replace(
    MAIN,
    arms=(BASELINE, "vapo", "decoupled", *arms.NEIGHBOURS, *_BY_ATTENTION),
    seeds=(1, 2, 3),
    memories=("18",),
    known=(BASELINE, "vapo", "decoupled"),
    against={"vapo_focus": "vapo", "vapo_grounded": "vapo"},
)
"""Methods of other papers, and credit by visual attention."""
PLANS = {"comparison": MAIN, "control": ALONE, "signal": SIGNAL, "neighbours": NEIGHBOURS}
QUICK = ForgetfulPlan(
    arms=(CONTROL,),
    seeds=(0,),
    num_steps=24,
    num_train_rows=384,
    num_test_rows=64,
    memories=("18",),
    start_steps=200,
)
"""A short form of the control."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One checkpoint on the held-out rows, and what its training saw; nan where there is none."""

    memory: str
    arm: str
    seed: int
    accuracy: float
    claims_early: float
    claims_late: float
    stated: float
    """Different cells that a response states."""
    checked: float
    """Those that it states after its last conclusion, and not before: the answer does not need
    them."""
    reads_right: float
    """Fraction of correct statements."""
    tokens: float
    recoverable: float
    """Rows incorrect at the end and correct when forced to answer at some earlier cut."""
    attention_early: float
    attention_middle: float
    attention_late: float
    """Visual attention ratio in the thirds of a response."""
    groups_right: float = math.nan
    """Of the training's prompts, those whose responses are all correct."""
    agreement: float = math.nan
    spread: float = math.nan
    perception_fraction: float = math.nan
    """Of the advantage: see docs/estimator.md."""
    kl: float = math.nan


_TRAINING = {
    "groups all correct": "groups_right",
    "predictions alike": "agreement",
    "spread of R_perc": "spread",
    "perception's fraction": "perception_fraction",
    "KL": "kl",
}
"""Column and field, of the training."""
MEASURES = {
    "claims late": "claims_late",
    "accuracy": "accuracy",
    "cells stated": "stated",
    "cells checked": "checked",
    "reads correct": "reads_right",
    "attention middle": "attention_middle",
    "claims early": "claims_early",
    "tokens": "tokens",
    "recoverable": "recoverable",
    "attention early": "attention_early",
    "attention late": "attention_late",
}
"""Column and field; the first is the primary measure, and that and the next five are tested."""
NUM_TESTED = 6


def workspaces(root: Path, plan: ForgetfulPlan) -> dict[str, Workspace]:
    """By strength."""
    return {
        memory: Workspace(root=root / f"memory_{memory}", start=root / "starts" / memory)
        for memory in plan.memories
    }


def make_start(work: Workspace, plan: ForgetfulPlan, memory: str, threads: int) -> None:
    """The warm start of one strength; a finished one is kept."""
    assert work.start is not None
    work.command(
        f"{WARM_START}_{memory}",
        "vapo_verl.digits.model",
        "warm-start",
        *("--memory", memory),
        *("--steps", str(plan.start_steps)),
        *("--threads", str(threads)),
        *("--out", str(work.start)),
        threads=threads,
    )


def runs_of(plan: Plan) -> list[Run]:
    """Seed by seed, so that an interrupted study still has pairs."""
    return [Run(arm=arm, seed=seed) for seed in plan.seeds for arm in plan.arms]


def is_measured(work: Workspace, name: str) -> bool:
    """Whether the last part of `measure` is complete for a checkpoint."""
    diagnostics = work.folder(name) / "diagnostics"
    parts = ("perception", "early-decision", OTHER_IMAGE_FOLDER)
    return all((diagnostics / part / "summary.json").is_file() for part in parts)


def read_outcome(work: Workspace, memory: str, name: str, arm: str, seed: int) -> Outcome:
    """What `measure` and the training left of a checkpoint."""
    diagnostics = work.folder(name) / "diagnostics"
    records = read_records(diagnostics / "perception")
    found = summarise(records)
    decision = load_early_decision(diagnostics / "early-decision")
    assert decision is not None  # measured
    outcome = Outcome(
        memory=memory,
        arm=arm,
        seed=seed,
        accuracy=found["accuracy"]["share"],
        claims_early=found["claims"]["early"]["share"],
        claims_late=found["claims"]["late"]["share"],
        tokens=found["mean_tokens"],
        recoverable=summarise_early(decision)["recoverable_any"]["of_rows"]["share"],
        **statements(records, read_scenes(work.data / TEST)),
        **_attention_by_third(records),
    )
    if arm == WARM_START:
        return outcome
    credit = read_credit(work, Run(arm=arm, seed=seed))
    return replace(outcome, **{name: getattr(credit, name) for name in _TRAINING.values()})


def statements(
    records: Sequence[Mapping[str, Any]], scenes: Mapping[int, Scene]
) -> dict[str, float]:
    """What responses say of cells: `stated`, `checked` and `reads_right` of an outcome."""
    stated, checked, right = [], [], []
    for record in records:
        scene, response = scenes[record["index"]], record["response"]
        needed, conclusion, rest = response.rpartition(_CONCLUSION)
        stated.append(len(cells_stated(response, scene)))
        new = cells_stated(rest, scene) - cells_stated(needed, scene)
        checked.append(len(new) if conclusion else 0)
        right += [correct for _, correct in reads_of(response, scene)]
    return {
        "stated": float(np.mean(stated)),
        "checked": float(np.mean(checked)),
        "reads_right": float(np.mean(right)) if right else math.nan,
    }


def _attention_by_third(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = ("attention_early", "attention_middle", "attention_late")
    thirds: dict[str, list[float]] = {name: [] for name in names}
    for record in records:
        values = np.array(record["attention"] or [], dtype=np.float64)
        if len(values) < 3:
            continue
        third = len(values) // 3
        parts = (values[:third], values[third:-third], values[-third:])
        for name, part in zip(names, parts, strict=True):
            thirds[name].append(float(np.nanmean(part)))
    return {name: float(np.mean(v)) if v else math.nan for name, v in thirds.items()}


def read_outcomes(
    works: Mapping[str, Workspace], plan: ForgetfulPlan, recorded: Sequence[Outcome] = ()
) -> dict[str, list[Outcome]]:
    """By strength, of all checkpoints that are measured; the warm start first.

    Args:
        recorded: those that are not measured here are taken from these.
    """
    elsewhere = {(each.memory, each.arm, each.seed): each for each in recorded}
    found: dict[str, list[Outcome]] = {}
    for memory in plan.memories:
        work = works[memory]
        names = [(WARM_START, WARM_START, NO_SEED)]
        names += [(run.name, run.arm, run.seed) for run in runs_of(plan)]
        outcomes = [
            read_outcome(work, memory, name, arm, seed)
            if is_measured(work, name)
            else elsewhere.get((memory, arm, seed))
            for name, arm, seed in names
        ]
        found[memory] = [outcome for outcome in outcomes if outcome is not None]
    return found


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
            parts.append(arms_table(tuple(_TRAINING.items()), trained))
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


def plotted(
    work: Workspace, plan: ForgetfulPlan, reported: Sequence[Outcome]
) -> ForgetfulPlan | None:
    """Arms of which a run is measured in this folder, and seeds of which all of these are.

    Args:
        reported: results of this strength. An arm of which some are from elsewhere cannot be
            plotted with all its seeds.

    Returns:
        None if there is nothing to plot: no such seed, no warm start (a line of the plots), or an
        arm that is measured here and elsewhere.
    """
    here = {run for run in runs_of(plan) if is_measured(work, run.name)}
    arms_here = tuple(arm for arm in plan.arms if arm in {run.arm for run in here})
    complete = tuple(
        seed
        for seed in plan.seeds
        if here and all(Run(arm=arm, seed=seed) in here for arm in arms_here)
    )
    elsewhere = {each.arm for each in reported if Run(arm=each.arm, seed=each.seed) not in here}
    if not (complete and is_measured(work, WARM_START)) or elsewhere & {*arms_here}:
        return None
    return replace(plan, arms=arms_here, seeds=complete)


def check_control(work: Workspace, plan: ForgetfulPlan) -> str:
    """What the control changed: late claims of the same rows, against the warm start.

    Raises:
        StudyError: they did not rise, so that the perception reward does not reach the policy.
    """
    names = (WARM_START, Run(arm=CONTROL, seed=plan.seeds[0]).name)
    before, after = (read_records(work.folder(n) / "diagnostics" / "perception") for n in names)
    late = [{r["row"]: late_claims(r) for r in records} for records in (before, after)]
    known = [{row: v for row, v in of.items() if v is not None} for of in late]
    found = paired_difference("claims_late", *known)
    scenes = read_scenes(work.data / TEST)
    cells = [statements(records, scenes)["stated"] for records in (before, after)]
    difference, p = paired_cells(found)
    text = (
        f"perception paid alone: late claims {difference}, p {p} over rows of one run; cells "
        f"stated {cells[0]:.2f} -> {cells[1]:.2f}"
    )
    if not (found.difference > 0 and found.p_t < ALPHA):
        raise StudyError(f"the control did not move: {text}")
    return text
