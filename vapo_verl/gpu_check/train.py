"""Stage `train`: some steps of the real job, then its checkpoint resumed.

Actor and reference under FSDP, vLLM on the same GPU with sleep mode, weights by CUDA IPC, anchors,
visual attention: recipe `smoke_gpu` with the 100M random model, once with sdpa and padding and once
with flash-attn where it is installed; with several GPUs also on all of them. Without CUDA it is the
recipe `smoke`.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from vapo_verl.gpu_check.case import CaseFailed, CaseSkipped, Check, require
from vapo_verl.gpu_check.results import Figure, significant

CORRELATION = "training/rollout_actor_probs_pearson_corr"
DIFFERENCE = "training/rollout_probs_diff"
LAST_LINES = 15
SDPA = (
    "actor_rollout_ref.model.use_remove_padding=false",
    "++actor_rollout_ref.model.override_config.attn_implementation=sdpa",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is trained, and what its metrics must show."""

    recipe: str
    overrides: Sequence[str]
    steps: int
    least_correlation: float
    """Least correlation of engine and actor probabilities of the same tokens, in every step."""
    start_s: float
    """Minimum duration of a run."""


def run(check: Check) -> None:
    job = gpu_job(check) if check.device == "cuda" else cpu_job(check)
    if not check.case("data", partial(make_data, check)):
        return
    sdpa = check.scratch / "sdpa"
    name = f"{job.steps} steps, sdpa and padding"
    trained = check.case(
        name, partial(train, check, job, sdpa, job.steps, SDPA), needs_s=job.start_s
    )
    if torch.cuda.device_count() > 1:  # first, because no other case covers several ranks
        several = partial(train_on_several, check, job)
        check.case(f"{num_ranks()} GPUs", several, needs_s=job.start_s)
    if check.device == "cuda":
        packed = partial(train_packed, check, job)
        check.case(f"{job.steps} steps, flash-attn and packing", packed, needs_s=job.start_s)
    if trained:
        again = partial(train, check, job, sdpa, job.steps + 1, SDPA)
        check.case(f"resumed at step {job.steps}", again, needs_s=job.start_s)


def gpu_job(check: Check) -> Job:
    return Job(
        recipe="smoke_gpu",
        overrides=[f"actor_rollout_ref.model.path={check.random_model('100m')}"],
        steps=4,
        least_correlation=0.98,  # both sides round to bfloat16, in different places
        start_s=70,
    )


def cpu_job(check: Check) -> Job:
    del check
    small = ["data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=8"]
    return Job(
        recipe="smoke",
        overrides=[*small, "trainer.val_before_train=false", "vapo.attention.enabled=true"],
        steps=2,
        least_correlation=0.99999,
        start_s=60,
    )


def make_data(check: Check) -> Mapping[str, Figure]:
    """The digits world, as in the head comments of the recipes."""
    folder = check.scratch / "digits"
    _call(check, [sys.executable, "-m", "vapo_verl.digits", "--out", str(folder)], "data")
    return {"files": ", ".join(sorted(path.name for path in folder.iterdir()))}


def train(
    check: Check, job: Job, run_dir: Path, last_step: int, overrides: Sequence[str] = ()
) -> Mapping[str, Figure]:
    """Train up to `last_step`, resuming from the run folder; returns figures of the new steps.

    Raises:
        CaseFailed: the run failed, or its metrics are not those of a healthy run.
    """
    known = len(_steps(run_dir))
    command = [
        *(sys.executable, "-m", "vapo_verl.main", f"+recipe={job.recipe}"),
        *job.overrides,
        *overrides,
        f"trainer.default_local_dir={run_dir}",
        f"trainer.total_training_steps={last_step}",
        f"trainer.save_freq={job.steps}",
        "trainer.test_freq=-1",
    ]
    start = time.monotonic()
    _call(check, command, f"{run_dir.name}_{last_step}")
    seconds = time.monotonic() - start
    steps = _steps(run_dir)
    numbers = [int(step["step"]) for step in steps]
    require(numbers == list(range(1, last_step + 1)), f"metrics.jsonl has steps {numbers}")
    return {"run_s": round(seconds), **healthy_figures(steps[known:], job)}


def train_packed(check: Check, job: Job) -> Mapping[str, Figure]:
    if importlib.util.find_spec("flash_attn") is None:
        raise CaseSkipped("flash-attn is not installed")
    return train(check, job, check.scratch / "packed", job.steps)


def num_ranks() -> int:
    """The largest power of two of this machine's GPUs, at most 8: it divides a step's responses."""
    return min(2 ** (torch.cuda.device_count().bit_length() - 1), 8)


def train_on_several(check: Check, job: Job) -> Mapping[str, Figure]:
    overrides = several_ranks(num_ranks())
    return train(check, job, check.scratch / "several_gpus", job.steps, [*SDPA, *overrides])


def several_ranks(ranks: int) -> list[str]:
    """Overrides of `smoke_gpu`: each rank's part of the 80 responses is a micro-batch."""
    responses = 80 // ranks
    return [
        f"trainer.n_gpus_per_node={ranks}",
        *(
            f"actor_rollout_ref.{key}={responses}"
            for key in (
                "actor.ppo_micro_batch_size_per_gpu",
                "ref.log_prob_micro_batch_size_per_gpu",
                "rollout.log_prob_micro_batch_size_per_gpu",
            )
        ),
    ]


def healthy_figures(steps: Sequence[Mapping[str, float]], job: Job) -> dict[str, Figure]:
    """Figures over steps of metrics.jsonl.

    Raises:
        CaseFailed: a step's engine and actor disagree, or a required value is missing or not
            finite.
    """
    for step in steps:
        for name in ("vapo/reward/total", "vapo/attention/mean", "actor/grad_norm", CORRELATION):
            value = step.get(name, math.nan)
            require(math.isfinite(value), f"step {step['step']}: {name} is {value}")
        correlation = step[CORRELATION]
        require(
            correlation >= job.least_correlation,
            f"step {step['step']}: rollout and actor correlate by {correlation:.5f}, "
            f"{job.least_correlation} is expected",
        )
    last = steps[-1]
    memory = {
        name.removeprefix("vapo/memory/"): significant(max(step[name] for step in steps), 3)
        for name in last
        if name.startswith("vapo/memory/")
    }
    seconds = {
        f"{phase}_s": significant(last[f"timing_s/{phase}"])
        for phase in ("step", "gen", "old_log_prob", "ref", "update_actor", "update_weights")
        if f"timing_s/{phase}" in last
    }
    return {
        "least_correlation": round(min(step[CORRELATION] for step in steps), 5),
        "mean_difference": significant(max(step[f"{DIFFERENCE}_mean"] for step in steps)),
        "largest_difference": significant(max(step[f"{DIFFERENCE}_max"] for step in steps)),
        **seconds,
        **memory,
    }


def _call(check: Check, command: Sequence[str], name: str) -> None:
    """Run a command with a log of its own, within the time that is left."""
    log = check.scratch / f"{name}.log"
    environment = {**os.environ, "RAY_ADDRESS": "local", "VAPO_DATA_DIR": str(check.scratch)}
    try:
        with log.open("wb") as stream:
            done = subprocess.run(
                command,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=max(check.seconds_left, 1),
            )
    except subprocess.TimeoutExpired as late:
        raise CaseFailed(f"not done after {late.timeout:.0f} s: {_tail(log)}") from late
    require(done.returncode == 0, f"exit code {done.returncode}: {_tail(log)}")


def _tail(log: Path) -> str:
    """The log's last lines, which are also printed to the stage's own log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
    print("\n".join(lines), flush=True)
    return " / ".join(line.strip() for line in lines[-3:])


def _steps(run_dir: Path) -> list[dict[str, float]]:
    file = run_dir / "metrics.jsonl"
    if not file.is_file():
        return []
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    steps = [{"step": line["step"], **line["data"]} for line in lines]
    return [step for step in steps if "vapo/reward/total" in step]
