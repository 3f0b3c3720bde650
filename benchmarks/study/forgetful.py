"""The comparisons in the world `forgetful_digits`: see plan.md for what they are to show.

Each strength of forgetting has a warm start and a workspace of its own, trained with the same rows,
arms and seeds. What is finished is reported; the same command goes on with the rest. Runs of one
seed are compared only where they begin with the same weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study import arms
from benchmarks.study.arms import BASELINE, CONTROL, Plan
from benchmarks.study.credit import read_credit
from benchmarks.study.figures import late_claims
from benchmarks.study.measuring import OTHER_IMAGE_FOLDER
from benchmarks.study.page import paired_cells
from benchmarks.study.reads import cells_stated, read_scenes, reads_of
from benchmarks.study.workspace import TEST, WARM_START, Run, StudyError, Workspace
from vapo_verl.analysis.statistics import paired_difference
from vapo_verl.digits.scene import Scene
from vapo_verl.evaluation.early_decision import load_early_decision
from vapo_verl.evaluation.early_decision import summarise as summarise_early
from vapo_verl.evaluation.perception.perception_command import summarise
from vapo_verl.evaluation.probing.journal import read_records

NO_SEED = -1
"""Of the warm start."""
WEIGHTS, START_FILE, UNRECORDED = "model.safetensors", "start.txt", "unrecorded"
STARTS = Path(__file__).parent / "starts"
"""The warm starts of the plan, one folder for each strength."""
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
    arms=("decoupled", *arms.SIGNAL),
    seeds=(1, 2, 3),
    memories=("18",),
    known=("decoupled",),
)
"""What makes the perception reward a signal; `decoupled` is an arm of the comparison."""
_BY_ATTENTION = ("vapo_focus", "vapo_grounded", "attention_reward")
NEIGHBOURS = replace(
    MAIN,
    arms=(BASELINE, "vapo", *arms.NEIGHBOURS, *_BY_ATTENTION),
    seeds=(1, 2, 3),
    memories=("18",),
    known=(BASELINE, "vapo"),
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
    start: str
    """The warm start: :func:`start_of` its folder."""
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


TRAINING = {
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


def workspaces(root: Path, plan: ForgetfulPlan, starts: Path | None = None) -> dict[str, Workspace]:
    """By strength.

    Args:
        starts: folder of the warm starts, each in one of its strength's name; None: in `root`.
    """
    starts = starts or root / "starts"
    return {
        memory: Workspace(root=root / f"memory_{memory}", start=starts / memory)
        for memory in plan.memories
    }


def bind_start(work: Workspace) -> None:
    """Assign the folder to its warm start, by the first 8 digits of the SHA-256 of its weights.

    Two kinds of CPU round otherwise, so that the same training makes other weights.

    Raises:
        StudyError: its runs began with another one.
    """
    file, text = work.root / START_FILE, (work.model / WEIGHTS).read_bytes()
    digest = hashlib.sha256(text).hexdigest()[:8]
    if not file.exists():
        file.write_text(digest)
    elif start_of(work) != digest:
        raise StudyError(
            f"{work.root} holds runs of the warm start {start_of(work)}, and {work.model} is "
            f"{digest}; give the former by --starts, or another --out"
        )


def start_of(work: Workspace) -> str:
    """The warm start of a folder's runs, by its digest; `unrecorded` where no file says it."""
    file = work.root / START_FILE
    return file.read_text() if file.exists() else UNRECORDED


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
        start=start_of(work),
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
    return replace(outcome, **{name: getattr(credit, name) for name in TRAINING.values()})


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
    """By strength, of the checkpoints that are measured; the warm start first.

    Args:
        recorded: results of other machines, for what is not measured here. The runs of one seed
            begin with one warm start: that of which most are there.
    """
    found: dict[str, list[Outcome]] = {}
    for memory in plan.memories:
        work = works[memory]
        names = [(WARM_START, WARM_START, NO_SEED)]
        names += [(run.name, run.arm, run.seed) for run in runs_of(plan)]
        here = [
            read_outcome(work, memory, name, arm, seed)
            for name, arm, seed in names
            if is_measured(work, name)
        ]
        found[memory] = of_one_start(
            [*here, *(each for each in recorded if each.memory == memory)], plan
        )
    return found


def of_one_start(outcomes: Iterable[Outcome], plan: Plan) -> list[Outcome]:
    """Of every seed the runs of the warm start that most of them have, after those warm starts.

    Args:
        outcomes: of one strength; the first of two results of a run counts, and the first of two
            warm starts with as many runs.
    """
    once: dict[tuple[str, str, int], Outcome] = {}
    for each in outcomes:
        once.setdefault((each.start, each.arm, each.seed), each)
    starts = list(dict.fromkeys(start for start, _, _ in once))
    runs: list[Outcome] = []
    for seed in plan.seeds:
        by_start = [
            [once[start, arm, seed] for arm in plan.arms if (start, arm, seed) in once]
            for start in starts
        ]
        runs += max(by_start, key=lambda found: len(found), default=[])
    used = [start for start in starts if not runs or any(each.start == start for each in runs)]
    firsts = [once[s, WARM_START, NO_SEED] for s in used if (s, WARM_START, NO_SEED) in once]
    return [*firsts, *sorted(runs, key=lambda each: (each.seed, plan.arms.index(each.arm)))]


def plotted(
    work: Workspace, plan: ForgetfulPlan, reported: Sequence[Outcome]
) -> ForgetfulPlan | None:
    """Arms of which a run is measured in this folder, and seeds of which all of these are.

    Args:
        reported: results of this strength. An arm of which some are from elsewhere cannot be
            plotted with all its seeds.

    Returns:
        None if there is nothing to plot: fewer than two arms, no such seed, no warm start (a line
        of the plots), or an arm that is measured here and elsewhere.
    """
    here = {run for run in runs_of(plan) if is_measured(work, run.name)}
    arms_here = tuple(arm for arm in plan.arms if arm in {run.arm for run in here})
    complete = tuple(
        seed
        for seed in plan.seeds
        if here and all(Run(arm=arm, seed=seed) in here for arm in arms_here)
    )
    elsewhere = {each.arm for each in reported if Run(arm=each.arm, seed=each.seed) not in here}
    is_whole = complete and is_measured(work, WARM_START) and not elsewhere & {*arms_here}
    if not is_whole or len(arms_here) < 2:
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
