"""Accuracy on claims of held-out rows, by kind of claim and position in the response."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.study.reads import read_scenes
from benchmarks.study.workspace import TEST, Workspace
from vapo_verl.digits.claims import all_claims
from vapo_verl.digits.scene import Scene
from vapo_verl.evaluation.perception.perception_command import part_of
from vapo_verl.evaluation.probing.journal import read_records

KINDS = ("identity", "color", "relation", "position")
PARTS = ("early", "late")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimKinds:
    """Accuracy on claims in the first and in the last third of responses, by kind."""

    arm: str
    seed: int
    identity_early: float
    identity_late: float
    color_early: float
    color_late: float
    relation_early: float
    relation_late: float
    position_early: float
    position_late: float


def read_claim_kinds(work: Workspace, name: str, arm: str, seed: int) -> ClaimKinds:
    """Read the results of `measure` for a checkpoint."""
    records = read_records(work.folder(name) / "diagnostics" / "perception")
    shares = shares_by_kind(records, read_scenes(work.data / TEST))
    return ClaimKinds(arm=arm, seed=seed, **shares)


def shares_by_kind(
    records: Sequence[Mapping[str, Any]], scenes: Mapping[int, Scene]
) -> dict[str, float]:
    """KIND_PART -> fraction of correct predictions; nan without claims."""
    predictions: defaultdict[str, list[bool]] = defaultdict(list)
    for record in records:
        kinds = {claim.text: claim.kind for claim in all_claims(scenes[record["index"]])}
        for anchor in record["anchors"]:
            part = part_of(anchor["position"], record["num_tokens"])
            predictions[f"{kinds[anchor['claim']]}_{part}"].append(anchor["correct"])
    names = [f"{kind}_{part}" for kind in KINDS for part in PARTS]
    return {
        name: float(np.mean(predictions[name])) if predictions[name] else float("nan")
        for name in names
    }
