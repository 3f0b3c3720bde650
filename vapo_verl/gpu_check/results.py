"""Results of a check: typed, as JSON, and as Markdown tables; the machine that they are of."""

import importlib
import json
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeAlias

from vapo_verl.files import atomic_write

Figure: TypeAlias = float | int | str | None
"""A measured number, already rounded, or a word."""
Status = Literal["passed", "failed", "skipped"]
PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "vllm",
    "verl",
    "ray",
    "flash-attn",
    "flashinfer-python",
)
"""Their versions are facts of a machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """The result of one case of a stage."""

    name: str
    status: Status
    seconds: float
    message: str = ""
    """Why it failed or was skipped; empty for one that passed."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """Units are in the names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """The result of a stage that ran or was skipped."""

    name: str
    status: Status
    seconds: float = 0.0
    message: str = ""
    """Why the stage itself failed or was skipped, beyond its cases. It has the last lines of output
    if its process crashed, hung or was ended."""
    cases: tuple[CaseResult, ...] = ()

    def counts(self) -> str:
        """``12 passed, 1 failed``; zero counts are left out."""
        count = Counter(case.status for case in self.cases)
        order: tuple[Status, ...] = ("passed", "failed", "skipped")
        return ", ".join(f"{count[status]} {status}" for status in order if count[status])


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """All stages of a check."""

    command: str
    date: str
    machine: Mapping[str, Figure]
    """From :func:`describe_machine`."""
    stages: tuple[StageResult, ...]
    seconds: float
    stopped: str = ""
    """Name of the signal that ended it early."""

    @property
    def passed(self) -> bool:
        """All stages that ran passed, at least one ran, and the check was not stopped."""
        ran = [stage for stage in self.stages if stage.status != "skipped"]
        return bool(ran) and not self.stopped and all(s.status == "passed" for s in ran)


def describe_machine() -> dict[str, Figure]:
    """GPUs, driver side and versions; ``gpus`` is 0 where torch sees no CUDA device.

    It imports torch, and leaves CUDA in use where there is a GPU: call it in a process of its own.
    """
    torch = importlib.import_module("torch")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    facts: dict[str, Figure] = {"gpus": count}
    if count:
        properties = torch.cuda.get_device_properties(0)
        major, minor = torch.cuda.get_device_capability(0)
        facts |= {
            "gpu": properties.name,
            "memory_gib": round(properties.total_memory / 2**30),
            "capability": f"{major}.{minor}",
        }
    facts |= {
        "cuda": torch.version.cuda,
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
    return facts | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def significant(value: float, digits: int = 2) -> float:
    """A measured value, rounded to `digits` significant digits."""
    return float(f"{value:.{digits}g}")


def stage_status(cases: Sequence[CaseResult], problem: str) -> Status:
    """``failed`` with a problem or a failed case, ``skipped`` where no case could run."""
    if problem or any(case.status == "failed" for case in cases):
        return "failed"
    return "passed" if any(case.status == "passed" for case in cases) else "skipped"


def write_results(result: CheckResult, out: Path) -> None:
    """Write ``results.json`` and ``results.md`` into the folder `out` atomically."""
    texts = {
        "results.json": json.dumps({**asdict(result), "passed": result.passed}, indent=1) + "\n",
        "results.md": markdown(result),
    }
    for name, text in texts.items():
        with atomic_write(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def markdown(result: CheckResult) -> str:
    """Two tables: one row per stage, and one row per case with its figures."""
    about = ", ".join(f"{name} {value}" for name, value in result.machine.items() if value)
    outcome = "passed" if result.passed else "failed"
    if result.stopped:
        outcome = f"stopped by {result.stopped}"
    lines = [
        f"`{result.command}`, {result.date}, {result.seconds:.0f} s: {outcome}.",
        "",
        f"{about}.",
        "",
        "| stage | result | cases | seconds |",
        "|---|---|---|---|",
    ]
    for stage in result.stages:
        note = f": {_cell(stage.message)}" if stage.message else ""
        counts = stage.counts()
        lines.append(f"| {stage.name} | {stage.status}{note} | {counts} | {stage.seconds:.0f} |")
    lines += ["", "| stage | case | result | figures |", "|---|---|---|---|"]
    for stage in result.stages:
        for case in stage.cases:
            note = f": {_cell(case.message)}" if case.message else ""
            figures = ", ".join(f"{key} {value}" for key, value in case.figures.items())
            row = (stage.name, _cell(case.name), f"{case.status}{note}", _cell(figures))
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str, limit: int = 300) -> str:
    """Text on one line of a table, its end cut off where it is long."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= limit else f"{line[:limit]}..."
