"""Spread of the perception reward among responses to one prompt, with and without late emphasis.

If the responses to a prompt have equal predictions on the same claims, R_perc differs only because
their claims are at other positions and late ones weigh more. Without late emphasis that part
vanishes, and the rest is due to the responses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from vapo_verl.config import RewardConfig
from vapo_verl.reward.perception import perception_score
from vapo_verl.run_folder.rollouts import rollout_files

_COLUMNS = ["uid", "response_ids", "anchors"]
_PAPER = RewardConfig().late_emphasis


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Standard deviations of R_perc among a prompt's probed responses, pooled over prompts; nan
    where no prompt has two."""

    paper: float
    """With the paper's late emphasis, not the run's: one measure for all arms."""
    flat: float
    """Without late emphasis."""


def read_spread(folder: Path) -> Spread:
    """Spread over the rollouts that a run saved."""
    tables = (pq.read_table(file, columns=_COLUMNS) for file in rollout_files(folder))
    return spread([row for table in tables for row in table.to_pylist()])


def spread(rows: Iterable[Mapping[str, Any]]) -> Spread:
    """Spread over saved rollouts; ``uid`` is that of their prompt."""
    groups: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["anchors"]:
            groups[row["uid"]].append(row)
    several = [group for group in groups.values() if len(group) > 1]
    return Spread(paper=_pooled(several, _PAPER), flat=_pooled(several, 0.0))


def _pooled(groups: Sequence[Sequence[Mapping[str, Any]]], late_emphasis: float) -> float:
    if not groups:
        return float("nan")
    scores = [[_score(row, late_emphasis) for row in group] for group in groups]
    freedom = [len(group) - 1 for group in scores]
    variances = [np.var(group, ddof=1) for group in scores]
    return float(np.sqrt(np.average(variances, weights=freedom)))


def _score(row: Mapping[str, Any], late_emphasis: float) -> float:
    return perception_score(
        [anchor["correct"] for anchor in row["anchors"]],
        [anchor["position"] for anchor in row["anchors"]],
        len(row["response_ids"]),
        late_emphasis,
    )
