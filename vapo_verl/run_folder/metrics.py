"""``metrics.jsonl`` of a run: written line by line, and read as columns; and ``validation.jsonl``.

The reader skips an incomplete line: the run may still write.
"""

import json
import math
import numbers
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vapo_verl.files import append_line, atomic_write_text
from vapo_verl.run_folder.layout import METRICS_FILE, named_failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The metrics of a run."""

    columns: dict[str, dict[int, float]] = field(default_factory=dict)
    """Metric -> step -> value, by rising step. Null, nan and infinite values are absent."""
    num_steps: int = 0
    """Steps that have a line, including the validation before training (step 0)."""
    num_broken_lines: int = 0
    """Lines that are not records, such as the last one of a run that is writing or was killed."""

    def series(self, name: str) -> dict[int, float]:
        """Step -> value; empty where the metric was never logged or never finite."""
        return self.columns.get(name, {})

    def names(self, prefix: str) -> list[str]:
        """Metrics that begin with `prefix` and have a value, by name."""
        return sorted(
            name for name, column in self.columns.items() if name.startswith(prefix) and column
        )


def read_metrics(path: Path) -> Metrics:
    """Read the file, line by line; a missing file gives no metrics.

    Where a step has several lines (a validation has its own), a later value replaces an earlier.
    """
    columns: dict[str, dict[int, float]] = {}
    steps: set[int] = set()
    num_broken = 0
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in filter(str.strip, file):
                record = _record(line)
                if record is None:
                    num_broken += 1
                    continue
                step, data = record
                steps.add(step)
                for name, value in data.items():
                    if _is_finite(value):
                        columns.setdefault(name, {})[step] = float(value)
    ordered = {name: dict(sorted(column.items())) for name, column in columns.items()}
    return Metrics(columns=ordered, num_steps=len(steps), num_broken_lines=num_broken)


def is_validated(run_dir: Path, step: int) -> bool:
    """Whether the metrics of a run hold a validation of `step`."""
    metrics = read_metrics(run_dir / METRICS_FILE)
    return any(step in metrics.series(name) for name in metrics.names("val-"))


def _record(line: str) -> tuple[int, dict[str, Any]] | None:
    try:
        record = json.loads(line)
        step, data = int(record["step"]), record["data"]
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    return (step, data) if isinstance(data, dict) else None


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


class MetricsFile:
    """``metrics.jsonl``: one ``{"step": .., "data": {..}}`` a line, as veRL's file logger writes.

    Unlike that logger it supports a resume: what the run logged up to the resumed step stays, and
    later values are dropped, because those steps run again. A step has one line: values that are
    logged for it later are added to that line. A value that is not finite is written as null.
    """

    def __init__(self, path: Path, resumed_step: int) -> None:
        self._path = path
        self._steps = set[int]()
        if path.exists():
            kept = self._records() if resumed_step > 0 else {}
            with named_failure(path):
                self._rewrite({step: data for step, data in kept.items() if step <= resumed_step})
        self.missing_steps = sorted({*range(1, resumed_step + 1)} - self._steps)
        """Steps up to the resumed one that have no line, as in runs of older releases."""

    def log(self, data: Mapping[str, Any], step: int) -> None:
        """Write the line of a step, synced to the disk.

        Raises:
            RunFolderError: it cannot be written; the file is as it was.
        """
        numbers_only = _numbers(data)
        with named_failure(self._path):
            if step in self._steps:
                records = self._records()
                self._rewrite(records | {step: records.get(step, {}) | numbers_only})
            else:
                _append(self._path, _line(step, numbers_only))
        self._steps.add(step)

    def _records(self) -> dict[int, dict[str, Any]]:
        """Data by step; if two runs in one folder logged a step, the last values count.

        The line that a killed process did not finish is left out.
        """
        records: dict[int, dict[str, Any]] = {}
        with self._path.open(encoding="utf-8", errors="replace") as file:
            for step, data in filter(None, map(_record, file)):
                records[step] = records.get(step, {}) | data
        return records

    def _rewrite(self, records: Mapping[int, Mapping[str, Any]]) -> None:
        lines = (_line(step, data) for step, data in sorted(records.items()))
        atomic_write_text(self._path, "".join(f"{line}\n" for line in lines))
        self._steps = set(records)


class ValidationFile:
    """``validation.jsonl``: a line for each run that only validated, beside the steps of the run.

    ``{"step": .., "checkpoint": "..", "data": {..}}``; the checkpoint is null for the model as it
    is configured. Lines are only added.
    """

    def __init__(self, path: Path, checkpoint: Path | None) -> None:
        self._path = path
        self._checkpoint = checkpoint and str(checkpoint)

    def log(self, data: Mapping[str, Any], step: int) -> None:
        """Add a line, synced to the disk.

        Raises:
            RunFolderError: it cannot be written.
        """
        record = {"step": step, "checkpoint": self._checkpoint, "data": _numbers(data)}
        with named_failure(self._path):
            _append(self._path, json.dumps(record))


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            append_line(file, line)
        except OSError:
            os.ftruncate(file.fileno(), size)  # a full disk may leave a part of a line
            raise


def _line(step: int, data: Mapping[str, Any]) -> str:
    return json.dumps({"step": step, "data": data})


def _numbers(data: Mapping[str, Any]) -> dict[str, float | int | None]:
    return {key: _finite(value) for key, value in data.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Number)


def _finite(value: Any) -> float | int | None:
    value = value.item() if hasattr(value, "item") else value
    return value if math.isfinite(value) else None
