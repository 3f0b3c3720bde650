"""Whole training runs of the smoke recipe, as a user starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


class Smoke:
    """Starts the smoke recipe, or another on its data, and reads what it leaves behind."""

    def __init__(self, root: Path, data: dict[str, Path], recipe: str = "smoke") -> None:
        self.root, self.data, self.recipe = root, data, recipe

    def start(self, name: str, *overrides: str) -> subprocess.Popen[str]:
        """A run in a process group of its own, so that it can be killed whole."""
        command = [sys.executable, "-m", "vapo_verl.main", f"+recipe={self.recipe}"]
        run_dir = f"trainer.default_local_dir={self.root / name}"
        if not any(override.startswith("vapo.logging.console=") for override in overrides):
            overrides = (*overrides, "vapo.logging.console=full")
        with (self.root / f"{name}.log").open("a") as log:
            return subprocess.Popen(
                [*command, run_dir, *overrides],
                cwd=self.root,
                env={**os.environ, "VAPO_DATA_DIR": str(self.data["train"].parents[1])},
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def run(self, name: str, *overrides: str) -> Path:
        """A run to its end; its folder."""
        process = self.start(name, *overrides)
        assert process.wait(timeout=1500) == 0, self.log(name)[-6000:]
        return self.root / name

    def kill_when(self, process: subprocess.Popen[str], path: Path) -> None:
        """``kill -9`` the driver and all it started as soon as ``path`` exists."""
        while not path.exists():
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text()


def metrics(run_dir: Path) -> dict[int, dict[str, Any]]:
    """Metrics by step; a step that stands twice is an error."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert len({line["step"] for line in lines}) == len(lines), "a step is logged twice"
    return {line["step"]: line["data"] for line in lines}


def rollouts(run_dir: Path, step: int) -> list[dict[str, Any]]:
    return pq.read_table(run_dir / "rollouts" / f"step_{step:06d}.parquet").to_pylist()
