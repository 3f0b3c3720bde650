"""Paths of a study's files, and the commands that make them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.study.arms import Plan
from vapo_verl.digits.model import model_dir

WARM_START = "warm_start"
NO_SEED = -1
"""Seed of the warm start."""
PLAN_FILE = "plan.json"
TRAIN, VALIDATION = "train.parquet", "val.parquet"
TEST, OTHER_IMAGE = "test.parquet", "test_other_image.parquet"


class StudyError(Exception):
    """A failed part of the study; the message names it and its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"


def runs_of(plan: Plan) -> list[Run]:
    """The plan's runs seed by seed, so that an interrupted study still has pairs."""
    return [Run(arm=arm, seed=seed) for seed in plan.seeds for arm in plan.arms]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Folders of a study."""

    root: Path
    start: Path | None = None
    """Folder of the warm start; None: the packaged hasty_digits."""

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def model(self) -> Path:
        """The warm start, from which every run begins."""
        return self.start or model_dir("hasty_digits")

    def folder(self, name: str) -> Path:
        """Folder of a run or of the warm start, with its measurements."""
        return self.root / "runs" / name

    def claim(self, plan: Plan) -> None:
        """Assign the folder to this plan.

        Raises:
            StudyError: it holds a study of another plan.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        file, text = self.root / PLAN_FILE, json.dumps(plan.size(), indent=1)
        if not file.exists():
            file.write_text(text)
        elif file.read_text() != text:
            raise StudyError(
                f"{self.root} holds a study of another plan ({file}); give another --out, or "
                "remove it"
            )

    def command(self, log: str, module: str, *arguments: str, threads: int) -> None:
        """Run `python -m module arguments`; its output is appended to `logs/LOG.log`.

        Raises:
            StudyError: the command failed.
        """
        file = self.root / "logs" / f"{log}.log"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as output:
            code = subprocess.run(
                [sys.executable, "-m", module, *arguments],
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        if code:
            raise StudyError(
                f"{log}: `python -m {module}` failed with exit code {code}; see {file}"
            )
