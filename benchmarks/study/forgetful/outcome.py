"""Measurements of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.study.credit import read_credit
from benchmarks.study.forgetful.starts import start_of
from benchmarks.study.measuring import OTHER_IMAGE_FOLDER
from benchmarks.study.reads import cells_stated, read_scenes, reads_of, stated_by_step
from benchmarks.study.workspace import TEST, WARM_START, Run, Workspace
from vapo_verl.digits.scene import Scene
from vapo_verl.evaluation.early_decision import load_early_decision
from vapo_verl.evaluation.early_decision import summarise as summarise_early
from vapo_verl.evaluation.perception.perception_command import part_of, summarise
from vapo_verl.evaluation.probing.journal import read_records

_CONCLUSION = "the largest is"
"""Sentences after the last one that contains this are not needed for the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One checkpoint on the held-out rows, and its training metrics; nan if there is no value.

    Responses to held-out rows are greedy; those of training are sampled at temperature 1.
    """

    memory: str
    start: str
    """Digest of the warm start, see :func:`start_of`."""
    arm: str
    seed: int
    accuracy: float
    claims_early: float
    claims_late: float
    late_stated: float
    late_unstated: float
    """Late claims on cells that the response states, and on other cells."""
    stated: float
    """Different cells that a response states."""
    checked: float
    """Cells that it states only after its last conclusion: the answer does not need them."""
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
    """Fraction of the training prompts whose responses are all correct."""
    accuracy_sampled: float = math.nan
    stated_sampled: float = math.nan
    """Accuracy over the last quarter of training; cells that a response states, over the recorded
    steps beyond three quarters of the last recorded one: 35, 40 and 45 of 48."""
    agreement: float = math.nan
    spread: float = math.nan
    perception_fraction: float = math.nan
    """Fraction of the advantage that perception decides: see docs/estimator.md."""
    kl: float = math.nan


def is_measured(work: Workspace, name: str) -> bool:
    """Whether the last part of `measure` is complete for a checkpoint."""
    diagnostics = work.folder(name) / "diagnostics"
    parts = ("perception", "early-decision", OTHER_IMAGE_FOLDER)
    return all((diagnostics / part / "summary.json").is_file() for part in parts)


def read_outcome(work: Workspace, memory: str, name: str, arm: str, seed: int) -> Outcome:
    """Read the results of `measure` and the training metrics of a checkpoint."""
    diagnostics = work.folder(name) / "diagnostics"
    records = read_records(diagnostics / "perception")
    found = summarise(records)
    scenes = read_scenes(work.data / TEST)
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
        **statements(records, scenes),
        **late_claims_by_cell(records, scenes),
        **_attention_by_third(records),
    )
    if arm == WARM_START:
        return outcome
    credit = read_credit(work, Run(arm=arm, seed=seed))
    return replace(
        outcome,
        groups_right=credit.groups_right,
        accuracy_sampled=credit.accuracy_last,
        stated_sampled=_last_recorded(stated_by_step(work, name)),
        agreement=credit.agreement,
        spread=credit.spread,
        perception_fraction=credit.perception_fraction,
        kl=credit.kl,
    )


def _last_recorded(by_step: Mapping[int, float]) -> float:
    """Mean over the steps beyond three quarters of the last one."""
    last = max(by_step)
    return float(np.mean([value for step, value in by_step.items() if step > 3 * last / 4]))


def statements(
    records: Sequence[Mapping[str, Any]], scenes: Mapping[int, Scene]
) -> dict[str, float]:
    """Statements about cells: `stated`, `checked` and `reads_right` of an outcome."""
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


def late_claims_by_cell(
    records: Sequence[Mapping[str, Any]], scenes: Mapping[int, Scene]
) -> dict[str, float]:
    """Accuracy on late claims: `late_stated` and `late_unstated` of an outcome."""
    found: dict[bool, list[bool]] = {True: [], False: []}
    for record in records:
        scene = scenes[record["index"]]
        stated = cells_stated(record["response"], scene)
        for anchor in record["anchors"]:
            if part_of(anchor["position"], record["num_tokens"]) == "late":
                found[_cell_of(anchor["claim"], scene) in stated].append(anchor["correct"])
    stated_, others = (float(np.mean(v)) if v else math.nan for v in found.values())
    return {"late_stated": stated_, "late_unstated": others}


def _cell_of(claim: str, scene: Scene) -> str:
    """The place of the cell that a claim is about."""
    (place,) = (place for place in scene.positions if f" {place} " in claim)
    return place


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
