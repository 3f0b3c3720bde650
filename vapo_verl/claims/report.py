"""The figures of a run and of a folder: `report.json`, and a few lines for a person."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from vapo_verl.claims.making.rules import is_low_level
from vapo_verl.claims.requests.prices import Price, describe_cost
from vapo_verl.claims.shards.record import ClaimRecord, Usage
from vapo_verl.claims.tally import RunTally
from vapo_verl.files import atomic_write

REPORT_NAME = "report.json"
_NUM_SHOWN = 5

Figures = dict[str, object]


def run_figures(tally: RunTally, model: str, price: Price | None, why_stopped: str) -> Figures:
    """What this process did."""
    return {
        "model": model,
        "finished": tally.num_finished,
        "short": tally.num_short,
        "failed": tally.num_failed,
        "failure_reasons": dict(tally.failure_reasons.most_common()),
        "failures": tally.failures,
        "retries": dict(tally.retries.most_common()),
        "images_by_attempts": dict(sorted(tally.attempts.items())),
        "rejected": dict(tally.rejected.most_common()),
        "usage": _usage(tally.usage),
        "price_usd": price and price.of(tally.usage),
        "stopped": why_stopped or None,
    }


def folder_figures(records: Iterable[ClaimRecord]) -> Figures:
    """Totals over the records of a folder, of whichever runs made them."""
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
        "share_true": num_true / num_claims if num_claims else None,
        "share_low_level": num_low_level / num_claims if num_claims else None,
        "images_by_model": dict(models),
        "rejected": dict(rejected.most_common()),
        "usage": _usage(usage),
        "check_usage": _usage(check_usage),
    }


def describe_run(tally: RunTally, model: str, price: Price | None) -> str:
    """The run in a few lines."""
    lines = [
        f"this run: {tally.num_finished:,} images finished, {tally.num_short:,} of them short, "
        f"{tally.num_failed:,} failed",
        f"cost: {describe_cost(tally.usage, model, price)}",
    ]
    counted: dict[str, Mapping[str, int] | Mapping[int, int]] = {
        "answers per image": tally.attempts,
        "requests tried again": tally.retries,
        "candidates rejected": tally.rejected,
        "failures": tally.failure_reasons,
    }
    lines += [f"{name}: {listed(counts)}" for name, counts in counted.items() if counts]
    for failure in tally.failures[:_NUM_SHOWN]:
        lines.append(f"  {failure['source']}: {failure['what']}")
    if tally.num_failed > _NUM_SHOWN:
        lines.append(f"  more of them in {REPORT_NAME}")
    return "\n".join(lines)


def describe_folder(figures: Figures) -> str:
    """The folder in one line."""
    share = figures["share_true"]
    true = f", {share:.1%} true" if isinstance(share, float) else ""
    return (
        f"in the folder: {figures['images']} images, {figures['short']} of them short,"
        f" {figures['claims']} claims{true}"
    )


def listed(counts: Mapping[str, int] | Mapping[int, int]) -> str:
    """`timeout x 3, status 500 x 1`."""
    return ", ".join(f"{name} x {count}" for name, count in counts.items())


def write_report(folder: Path, report: Figures) -> None:
    """Put report.json in place at once; what a kill leaves is the old one."""
    with atomic_write(folder / REPORT_NAME) as partial:
        text = json.dumps(report, indent=2, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "answers": usage.num_requests,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }
