"""Counts of a run and of a folder: `report.json`, and a short text."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vapo_verl.claims.making.rules import is_low_level
from vapo_verl.claims.shards import ClaimRecord, Usage
from vapo_verl.files import atomic_write

REPORT_NAME = "report.json"
_NUM_SHOWN = 5
_MAX_LISTED = 1000

Figures = dict[str, object]


@dataclass(slots=True, kw_only=True)
class RunCounts:
    """Counts of this process; the folder's totals are computed from its shards."""

    num_finished: int = 0
    """Images stored, including short ones."""
    num_short: int = 0
    num_failed: int = 0
    num_failed_in_a_row: int = 0
    """Since the last image that was stored: a high number means the endpoint is down."""
    failure_reasons: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, str]] = field(default_factory=list)
    """The first failures in full: source, key, what happened."""
    retries: Counter[str] = field(default_factory=Counter)
    """Requests tried again, by reason."""
    attempts: Counter[int] = field(default_factory=Counter)
    """Images stored, by the number of answers they took."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Rejected candidates by reason, including those of failed images."""
    usage: Usage = field(default_factory=Usage)
    """All tokens of this run, including those of failed images."""

    def add_record(self, record: ClaimRecord) -> None:
        self.num_finished += 1
        self.num_short += record.status == "short"
        self.num_failed_in_a_row = 0
        self.attempts[record.attempts] += 1

    def add_failure(self, source: str, key: str, reason: str, detail: str) -> None:
        """Count an image that gets no record because of the endpoint."""
        self.num_failed_in_a_row += 1
        self.add_unreadable(source, key, reason, detail)

    def add_unreadable(self, source: str, key: str, reason: str, detail: str) -> None:
        """Count an image that gets no record; it does not count against the endpoint."""
        self.num_failed += 1
        self.failure_reasons[reason] += 1
        if len(self.failures) < _MAX_LISTED:
            self.failures.append({"source": source, "key": key, "what": detail})


def run_figures(counts: RunCounts, model: str, why_stopped: str) -> Figures:
    """Figures of this process."""
    return {
        "model": model,
        "finished": counts.num_finished,
        "short": counts.num_short,
        "failed": counts.num_failed,
        "failure_reasons": dict(counts.failure_reasons.most_common()),
        "failures": counts.failures,
        "retries": dict(counts.retries.most_common()),
        "images_by_attempts": dict(sorted(counts.attempts.items())),
        "rejected": dict(counts.rejected.most_common()),
        "usage": _usage(counts.usage),
        "stopped": why_stopped or None,
    }


def folder_figures(records: Iterable[ClaimRecord]) -> Figures:
    """Totals over all records of a folder, from any run."""
    num_images = num_short = num_claims = num_true = num_low_level = 0
    models, rejected = Counter[str](), Counter[str]()
    usage, check_usage = Usage(), Usage()
    for record in records:
        num_images += 1
        num_short += record.status == "short"
        num_claims += len(record.claims)
        num_true += sum(claim.label for claim in record.claims)
        num_low_level += sum(is_low_level(claim.text) for claim in record.claims)
        models[record.model] += 1
        rejected.update(record.rejected)
        usage += record.usage
        check_usage += record.check_usage
    return {
        "images": num_images,
        "short": num_short,
        "claims": num_claims,
        "fraction_true": num_true / num_claims if num_claims else None,
        "fraction_low_level": num_low_level / num_claims if num_claims else None,
        "images_by_model": dict(models),
        "rejected": dict(rejected.most_common()),
        "usage": _usage(usage),
        "check_usage": _usage(check_usage),
    }


def describe_run(counts: RunCounts) -> str:
    """The run in a few lines."""
    lines = [
        f"this run: {counts.num_finished:,} images finished, {counts.num_short:,} of them short, "
        f"{counts.num_failed:,} failed",
        f"tokens: {describe_usage(counts.usage)}",
    ]
    counted: dict[str, Mapping[str, int] | Mapping[int, int]] = {
        "answers per image": counts.attempts,
        "requests tried again": counts.retries,
        "candidates rejected": counts.rejected,
        "failures": counts.failure_reasons,
    }
    lines += [f"{name}: {listed(reasons)}" for name, reasons in counted.items() if reasons]
    for failure in counts.failures[:_NUM_SHOWN]:
        lines.append(f"  {failure['source']}: {failure['what']}")
    if counts.num_failed > _NUM_SHOWN:
        lines.append(f"  more of them in {REPORT_NAME}")
    return "\n".join(lines)


def describe_folder(figures: Figures) -> str:
    """The folder in one line."""
    fraction = figures["fraction_true"]
    true = f", {fraction:.1%} true" if isinstance(fraction, float) else ""
    return (
        f"in the folder: {figures['images']} images, {figures['short']} of them short,"
        f" {figures['claims']} claims{true}"
    )


def describe_usage(usage: Usage) -> str:
    """`1,200 prompt + 300 completion tokens in 4 requests`."""
    return (
        f"{usage.prompt_tokens:,} prompt + {usage.completion_tokens:,} completion tokens "
        f"in {usage.num_requests:,} requests"
    )


def listed(counts: Mapping[str, int] | Mapping[int, int]) -> str:
    """`timeout x 3, status 500 x 1`."""
    return ", ".join(f"{name} x {count}" for name, count in counts.items())


def write_report(folder: Path, report: Figures) -> None:
    """Write report.json atomically: a killed process leaves the old one."""
    with atomic_write(folder / REPORT_NAME) as partial:
        text = json.dumps(report, indent=2, ensure_ascii=False)
        # a file's name may not be UTF-8: JSON reads the escape
        partial.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "answers": usage.num_requests,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }
