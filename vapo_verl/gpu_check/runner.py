"""The stages of the check, each run in a process of its own with a time limit.

A stage that crashes, hangs or is killed fails, with its last lines of output; the others still run.
Ctrl-C and SIGTERM end the check with the results so far.
"""

import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from vapo_verl.gpu_check.case import read_cases
from vapo_verl.gpu_check.results import (
    CaseResult,
    CheckResult,
    Figure,
    StageResult,
    stage_status,
    write_results,
)
from vapo_verl.process_tree import guarded, terminate_tree

POLL_S = 0.2
TAIL_LINES = 12
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
DESCRIBE_MACHINE = """
import json
from vapo_verl.gpu_check.results import describe_machine
print(json.dumps(describe_machine()))
"""
MACHINE_TIMEOUT_S = 120
NATIVE_SAMPLER = {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
"""Training also samples by torch (`logprobs_mode=processed_logprobs`). FlashInfer's sampler is
compiled when an engine starts, which fails without nvcc."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One part of the check, in the module of its name."""

    name: str
    what: str
    needs: str
    """Packages beside torch."""
    core_s: int
    """Seconds on one H100 for its most informative cases, process start included."""
    cap_s: int
    """Seconds after which it is ended."""


STAGES = (
    Stage(
        name="kernels",
        what="Triton kernels against the reference: dtypes, GQA, head sizes, layouts, CUDA graphs",
        needs="triton, jaxtyping, numpy, psutil",
        core_s=35,
        cap_s=75,
    ),
    Stage(
        name="kernel_speed",
        what="time of the kernels as a fraction of a decode step's memory traffic",
        needs="triton, jaxtyping, numpy, psutil",
        core_s=25,
        cap_s=50,
    ),
    Stage(
        name="engine",
        what="visual attention of vLLM engines against transformers, per token",
        needs="vllm, transformers; flashinfer for its cases",
        core_s=100,
        cap_s=190,
    ),
    Stage(
        name="train",
        what="4 steps of the real job: FSDP, vLLM with sleep mode, weights by CUDA IPC, resume",
        needs="vllm, verl, ray; flash-attn for its cases",
        core_s=130,
        cap_s=220,
    ),
    Stage(
        name="engine_speed",
        what="decode steps with capture off, on the default layers and on all layers",
        needs="vllm, transformers",
        core_s=50,
        cap_s=85,
    ),
    Stage(
        name="probes",
        what="a rollout of 256 responses with 0, 8 and 20 anchors each",
        needs="vllm, transformers",
        core_s=50,
        cap_s=85,
    ),
)


DEFAULT_MINUTES = 12.0


SLOWER_ON_CPU = 6
"""Factor on the time limit of a stage in a rehearsal."""


def select_stages(names: Sequence[str] | None) -> list[Stage]:
    """The stages with these names (also comma-separated), in their own order; all for None.

    Raises:
        ValueError: there is no stage of a name.
    """
    if names is None:
        return list(STAGES)
    known = [stage.name for stage in STAGES]
    wanted = [name for item in names for name in item.split(",") if name]
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"--stages {unknown[0]} is not known; use {' '.join(known)}")
    return [stage for stage in STAGES if stage.name in wanted]


def allot(stages: Sequence[Stage], budget_s: float) -> dict[str, int]:
    """Whole seconds for each stage: first the most informative cases of each, then the rest.

    In order, each stage gets its `core_s` while the budget lasts. The remaining time is added in
    the same order, up to `cap_s`. 0: there is no time for the stage.
    """
    left = int(budget_s)
    given = dict.fromkeys((stage.name for stage in stages), 0)
    for stage in stages:
        if stage.core_s <= left:
            given[stage.name] = stage.core_s
            left -= stage.core_s
    for stage in stages:
        if given[stage.name]:
            more = min(stage.cap_s - stage.core_s, left)
            given[stage.name] += more
            left -= more
    return given


def for_rehearsal(stages: Sequence[Stage]) -> list[Stage]:
    """The stages with limits for small sizes on a few CPU cores."""
    return [replace(stage, cap_s=SLOWER_ON_CPU * stage.cap_s) for stage in stages]


StageCommand = Callable[[Stage, int, Path], Sequence[str]]
"""Makes the command from a stage, its seconds and its scratch folder."""


class Stop:
    """Set by the first signal to stop; later ones change nothing."""

    def __init__(self) -> None:
        self.name = ""

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name


@contextmanager
def stopping() -> Iterator[Stop]:
    """Within, Ctrl-C and SIGTERM set the yielded stop instead of ending this process."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def machine_facts() -> dict[str, Figure]:
    """The machine's description, from a process of its own.

    Raises:
        RuntimeError: torch cannot be imported; with the last line of its output.
    """
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE_MACHINE],
        capture_output=True,
        text=True,
        timeout=MACHINE_TIMEOUT_S,
    )
    if done.returncode:
        raise RuntimeError(f"torch does not start: {_last(done.stderr.splitlines(), 1)}")
    return json.loads(done.stdout.splitlines()[-1])


def stage_command(device: str) -> StageCommand:
    """Makes the command that runs a stage on ``cuda`` or ``cpu``."""

    def command(stage: Stage, seconds: int, scratch: Path) -> Sequence[str]:
        module = [sys.executable, "-m", "vapo_verl.gpu_check.case", stage.name]
        limits = ["--device", device, "--seconds", str(seconds), "--scratch", str(scratch)]
        return [*module, *limits]

    return command


def run_check(
    stages: Sequence[Stage],
    *,
    minutes: float,
    out: Path,
    machine: dict[str, Figure],
    command: StageCommand,
    say: Say,
) -> CheckResult:
    """Run the stages within `minutes`; results and each stage's log are in the folder `out`.

    Time that a stage does not use goes to later stages. Results are written after each stage.
    """
    started = time.monotonic()
    found: list[StageResult] = []
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")

    def write(stopped: str, rest: Sequence[StageResult] = ()) -> CheckResult:
        result = CheckResult(
            command=shlex.join(["python", "-m", "vapo_verl.gpu_check", *sys.argv[1:]]),
            date=date,
            machine=machine,
            stages=(*found, *rest),
            seconds=round(time.monotonic() - started, 1),
            stopped=stopped,
        )
        write_results(result, out)
        return result

    out.mkdir(parents=True, exist_ok=True)
    with stopping() as stop, guarded() as watch, tempfile.TemporaryDirectory() as scratch:
        for number, stage in enumerate(stages):
            left = 60 * minutes - (time.monotonic() - started)
            seconds = allot(stages[number:], left)[stage.name]
            say(f"[{number + 1}/{len(stages)}] {stage.name}: {stage.what}")
            if stop.name:
                result = StageResult(name=stage.name, status="skipped", message="stopped")
            elif not seconds:
                message = f"{max(left, 0):.0f} s left, {stage.core_s} s needed"
                result = StageResult(name=stage.name, status="skipped", message=message)
            else:
                folder = Path(scratch) / stage.name
                folder.mkdir()
                words = command(stage, seconds, folder)
                log = out / f"{stage.name}.log"
                result = run_stage(stage, seconds, words, folder, log, stop, watch, say)
            found.append(result)
            say(f"      {result.status}{_describe(result)} ({result.seconds:.0f} s)")
            write(stop.name)
    return write(stop.name)


def run_stage(
    stage: Stage,
    seconds: int,
    command: Sequence[str],
    scratch: Path,
    log: Path,
    stop: Stop,
    watch: Callable[[int], None],
    say: Say,
) -> StageResult:
    """Run one stage's process to its end or time limit, then end all that it started."""
    started = time.monotonic()
    num_shown = 0

    def tell_cases() -> list[CaseResult]:
        nonlocal num_shown
        cases = read_cases(scratch)
        for case in cases[num_shown:]:
            say(f"      {_case_line(case)}")
        num_shown = len(cases)
        return cases

    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**NATIVE_SAMPLER, **os.environ, "PYTHONUNBUFFERED": "1"},
        )
        watch(process.pid)
        problem = ""
        while process.poll() is None and not problem:
            time.sleep(POLL_S)
            tell_cases()
            if stop.name:
                problem = f"stopped by {stop.name}"
            elif time.monotonic() - started > seconds:
                problem = f"not done after {seconds} s"
        terminate_tree(process.pid)  # also what a stage that ended left behind
        code = process.wait()
    cases = tell_cases()
    if not problem and code:
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        problem = f"its process ended with {how}"
    if problem and not stop.name:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        problem += f"; last lines: {_last(lines, 3)}"
        for line in lines[-TAIL_LINES:]:
            say(f"      | {line}")
    return StageResult(
        name=stage.name,
        status=stage_status(cases, problem),
        seconds=round(time.monotonic() - started, 1),
        message=problem,
        cases=tuple(cases),
    )


def _case_line(case: CaseResult) -> str:
    figures = ", ".join(f"{name} {value}" for name, value in case.figures.items())
    what = case.message or figures
    status = case.status.upper() if case.status == "failed" else case.status
    return f"{status:8} {case.name} ({case.seconds:.1f} s)" + (f": {what}" if what else "")


def _describe(result: StageResult) -> str:
    parts = [part for part in (result.counts(), result.message.partition(";")[0]) if part]
    return f": {'; '.join(parts)}" if parts else ""


def _last(lines: Sequence[str], number: int) -> str:
    shown = [line.strip() for line in lines if line.strip()]
    return " / ".join(shown[-number:]) or "(it printed nothing)"
