"""A run that nothing happened to, and how another run folder differs from it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import vapo_verl
from vapo_verl.run_folder.checkpoints import (
    checkpoint_folder,
    complete_steps,
    has_checksums,
    verify_checkpoint,
)

BY_TIME = re.compile(
    r"^(timing_|perf/|actor/perf/|vapo/memory/)|_s$|_s/|tail_share|step_share|prefix_hit_rate|reused_tokens"
    r"|prefill_tokens|encoder_runs_saved|throughput|time|_lag_ms_"
)
"""Metrics that depend on the machine's load and on what the KV cache still holds."""
RELATIVE, ABSOLUTE = 1e-4, 1e-5
SAMPLE_COLUMNS = ("uid", "sample", "response_ids", "anchors")


def code_digest() -> str:
    """A digest of the package's source: a reference is that of runs of the same code."""
    package = Path(vapo_verl.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def lines(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def usual_seconds(run_dir: Path) -> dict[str, float]:
    """Length of the phases of a step, by the metrics of a finished run."""
    last = lines(run_dir)[-1]["data"]
    timers = {
        "rollout": "gen",
        "log-prob": "old_log_prob",
        "update": "update_actor",
        "save": "save_checkpoint",
        "validation": "testing",
    }
    known = {phase: last.get(f"timing_s/{timer}", 0.2) for phase, timer in timers.items()}
    return {"start": 20.0, **known}


def problems(run_dir: Path, reference: Path, *, is_finished: bool) -> list[str]:
    """Gaps, repeats, poisoned checkpoints and differences from the reference.

    Args:
        is_finished: else the last logged step may be one whose checkpoint is not complete.
    """
    found = []
    steps = [line["step"] for line in lines(run_dir)]
    saved = complete_steps(run_dir)
    last = max(saved, default=0)
    if len(set(steps)) < len(steps):
        found.append(f"repeated steps in metrics.jsonl: {steps}")
    if gaps := set(range(1, last + 1)) - set(steps):
        found.append(f"steps without a line in metrics.jsonl: {sorted(gaps)}")
    rollouts = {path.name for path in (run_dir / "rollouts").glob("step_*.parquet")}
    if gaps := {f"step_{step:06d}.parquet" for step in range(1, last + 1)} - rollouts:
        found.append(f"rollouts missing: {sorted(gaps)}")
    for step in saved:
        folder = checkpoint_folder(run_dir, step)
        if not has_checksums(folder):
            found.append(f"no checksums in checkpoint {step}")
        found += [f"checkpoint {step}: {problem}" for problem in verify_checkpoint(folder)]
    if is_finished:
        wanted = [line["step"] for line in lines(reference)]
        if steps != wanted:
            found.append(f"steps {steps} instead of {wanted}")
        if not (run_dir / "report.html").exists():
            found.append("no report.html")
    found += _other_metrics(run_dir, reference, last)
    found += _other_samples(run_dir, reference, last)
    return found


def _other_metrics(run_dir: Path, reference: Path, last: int) -> list[str]:
    mine = {line["step"]: line["data"] for line in lines(run_dir)}
    found = []
    for line in lines(reference):
        step, expected = line["step"], line["data"]
        if step > last or step not in mine:
            continue
        names = [name for name in expected if not BY_TIME.search(name)]
        other = [name for name in names if not _is_close(mine[step].get(name), expected[name])]
        if other:
            shown = ", ".join(f"{n} {mine[step].get(n)} for {expected[n]}" for n in other[:3])
            found.append(f"step {step}: {len(other)} of {len(names)} metrics differ: {shown}")
    return found


def _is_close(value: float | None, expected: float | None) -> bool:
    if value is None or expected is None:
        return value is expected
    return math.isclose(value, expected, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def _other_samples(run_dir: Path, reference: Path, last: int) -> list[str]:
    found = []
    for step in range(1, last + 1):
        name = f"rollouts/step_{step:06d}.parquet"
        if not ((run_dir / name).exists() and (reference / name).exists()):
            continue
        mine, expected = (
            pq.read_table(folder / name).select(list(SAMPLE_COLUMNS)).to_pylist()
            for folder in (run_dir, reference)
        )
        differing = sum(_plain(a) != _plain(b) for a, b in zip(mine, expected, strict=False))
        if differing or len(mine) != len(expected):
            found.append(f"step {step}: {differing} of {len(expected)} sampled responses differ")
    return found


def _plain(row: dict[str, Any]) -> tuple[Any, ...]:
    anchors = [(a["position"], a["claim"], a["answer"]) for a in row["anchors"]]
    return row["uid"], row["sample"], row["response_ids"], anchors
