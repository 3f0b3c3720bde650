"""Statements of a response such as "top left is red 3.", compared with the image."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.study.workspace import TRAIN, StudyError, Workspace
from vapo_verl.analysis.position_curves import EARLY, LATE
from vapo_verl.digits.scene import COLORS, Scene
from vapo_verl.run_folder.rollouts import read_rollouts, rollout_files

_READ = re.compile(rf"((?:top|middle|bottom) (?:left|center|right)) is ({'|'.join(COLORS)}) (\d)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """Fractions of reads with the correct colour and digit; nan without reads."""

    number: float
    """Mean number of reads in a response."""
    early: float
    """In the first third of a response's text; `late`: in the last third."""
    late: float
    wrong_but_seen: float
    """Fraction of the incorrect responses whose reads are all correct: another step failed."""


def reads_of(response: str, scene: Scene) -> Iterator[tuple[float, bool]]:
    """Progress along the text and correctness of every read of an existing cell."""
    for match in _READ.finditer(response):
        place, color, digit = match.groups()
        cell = scene.positions.get(place)
        if cell is not None:
            yield match.end() / len(response), (cell.color, cell.digit) == (color, int(digit))


def cells_stated(text: str, scene: Scene) -> set[str]:
    """Places of the image's cells that a text makes a statement about."""
    return {place for place in scene.positions if f"{place} is" in text}


def summarise_reads(records: Sequence[Mapping[str, Any]], scenes: Mapping[int, Scene]) -> Reads:
    """Summarise the reads in records of `perception`; `scenes` maps a row's index to its scene."""
    numbers: list[int] = []
    early: list[bool] = []
    late: list[bool] = []
    seen_though_wrong: list[bool] = []
    for record in records:
        reads = list(reads_of(record["response"], scenes[record["index"]]))
        numbers.append(len(reads))
        early += [right for progress, right in reads if progress <= EARLY]
        late += [right for progress, right in reads if progress >= LATE]
        if not record["right"]:
            seen_though_wrong.append(all(right for _, right in reads))
    return Reads(
        number=_mean(numbers),
        early=_mean(early),
        late=_mean(late),
        wrong_but_seen=_mean(seen_though_wrong),
    )


def stated_by_step(work: Workspace, name: str) -> dict[int, float]:
    """Step -> cells that a response states, mean over the responses saved during training.

    Raises:
        StudyError: no response was saved.
    """
    scenes = read_scenes(work.data / TRAIN)
    found: dict[int, list[int]] = {}
    problems: list[str] = []
    for rollout in read_rollouts(rollout_files(work.folder(name)), problems):
        assert rollout.step is not None and rollout.index is not None
        stated = len(cells_stated(rollout.response, scenes[rollout.index]))
        found.setdefault(rollout.step, []).append(stated)
    if problems or not found:
        raise StudyError(f"{work.folder(name)}: {'; '.join(problems) or 'no saved rollouts'}")
    return {step: float(np.mean(values)) for step, values in found.items()}


@cache
def read_scenes(file: Path) -> dict[int, Scene]:
    """Scene of every row of a digits file, by its index."""
    infos = pq.read_table(file, columns=["extra_info"]).column(0).to_pylist()
    return {info["index"]: Scene.from_json(info["scene"]) for info in infos}


def _mean(values: Sequence[int]) -> float:
    return float(np.mean(values)) if values else float("nan")
