"""Wall time and peak memory of the smoke recipe, with a breakdown of a training step.

    python benchmarks/smoke_cost.py [overrides of the recipe]

Memory is the proportional set size of all processes of the run, sampled once a second: shared pages
count once. Prints a table and one JSON line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from statistics import median

MARK = "VAPO_BENCHMARK_RUN"
PHASES = ("gen", "old_log_prob", "ref", "update_actor", "update_weights", "step")


def main() -> None:
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory() as run_dir:
        start = time.monotonic()
        process = start_run(run_dir, mark)
        peak_gib = max(sampled_gib(process, mark), default=0.0)
        wall_s = time.monotonic() - start
        if process.returncode:
            raise SystemExit(f"the run failed with exit code {process.returncode}")
        steps = training_steps(Path(run_dir))
    report(wall_s, peak_gib, steps)


def start_run(run_dir: str, mark: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vapo_verl.main", "+recipe=smoke"]
    return subprocess.Popen(
        [*command, f"trainer.default_local_dir={run_dir}", *sys.argv[1:]],
        env={**os.environ, MARK: mark},
        stdout=sys.stderr,
    )


def sampled_gib(process: subprocess.Popen[bytes], mark: str) -> Iterator[float]:
    while process.poll() is None:
        yield sum(proportional_kib(pid) for pid in marked_processes(mark)) / 2**20
        time.sleep(1)


def marked_processes(mark: str) -> Iterator[Path]:
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes():
                yield folder
        except OSError:
            continue  # it has ended, or belongs to another user


def proportional_kib(folder: Path) -> int:
    try:
        lines = (folder / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def training_steps(run_dir: Path) -> list[dict[str, float]]:
    lines = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line["data"] for line in lines if line["step"] > 0]


def report(wall_s: float, peak_gib: float, steps: list[dict[str, float]]) -> None:
    seconds = {name: median(step[f"timing_s/{name}"] for step in steps) for name in PHASES}
    print(f"{len(steps)} steps in {wall_s:.0f} s, peak memory {peak_gib:.1f} GiB")
    for name, value in seconds.items():
        print(f"  {name:15s} {value:6.2f} s (median)")
    figures = {"wall_s": wall_s, "peak_gib": peak_gib, "steps": len(steps), "median_s": seconds}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
