"""Claim accuracy by place in the response, and attention."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vapo_verl.analysis.attention_curves import EARLY, LATE
from vapo_verl.analysis.statistics import finite, paired_difference, share, share_of
from vapo_verl.evaluation.probing.attention_summary import attention_summary

Record = Mapping[str, Any]

PARTS = ("start", "early", "middle", "late")
"""Behind the prompt, and the thirds of a response by position / num_tokens."""
NUM_BINS = 10


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """What `summary.json` holds; of at least one record.

    `claims` has the share of right verdicts in all, by part and by tenth of the response, the
    yes-rate, and `late_minus_early`: the paired difference over responses, each with the mean of
    its own claims. Verdicts within a response depend on each other, so that the intervals of the
    shares are somewhat too narrow; that of the paired difference is not.
    """
    anchors = [anchor for record in records for anchor in record["anchors"]]
    early, late = (_of_responses(records, part) for part in ("early", "late"))
    return {
        "num_rows": len(records),
        "accuracy": share_of([record["right"] for record in records]),
        "format": float(np.mean([record["format"] for record in records])),
        "truncated": share_of([record["finish"] == "length" for record in records]),
        "mean_tokens": float(np.mean([record["num_tokens"] for record in records])),
        "claims": {
            "all": share_of([anchor["correct"] for anchor in anchors]),
            **{part: share_of(_correct(records, part)) for part in PARTS},
            "by_progress": _by_progress(records),
            "yes_rate": share_of([anchor["answer"] for anchor in anchors]),
            "label_rate": share_of([anchor["label"] for anchor in anchors]),
            "late_minus_early": finite(asdict(paired_difference("claims", early, late))),
        },
        "attention": attention_summary(record["attention"] for record in records),
        "prefix_cache": share(
            sum(record["cached_tokens"] for record in records),
            sum(record["probe_tokens"] for record in records),
        ),
    }


def part_of(position: int, num_tokens: int) -> str:
    """One of :data:`PARTS`."""
    progress = position / max(num_tokens, 1)
    if position == 0:
        return "start"
    return "early" if progress <= EARLY else "late" if progress >= LATE else "middle"


def _correct(records: Sequence[Record], part: str) -> list[bool]:
    return [correct for record in records for correct in _of_record(record, part)]


def _of_record(record: Record, part: str) -> list[bool]:
    return [
        anchor["correct"]
        for anchor in record["anchors"]
        if part_of(anchor["position"], record["num_tokens"]) == part
    ]


def _of_responses(records: Sequence[Record], part: str) -> dict[int, float]:
    means = {record["row"]: _of_record(record, part) for record in records}
    return {row: float(np.mean(correct)) for row, correct in means.items() if correct}


def _by_progress(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Tenths of the response; what stands behind the prompt is in none of them."""
    bins: list[list[bool]] = [[] for _ in range(NUM_BINS)]
    for record in records:
        for anchor in record["anchors"]:
            if anchor["position"]:
                progress = anchor["position"] / record["num_tokens"]
                bins[min(int(progress * NUM_BINS), NUM_BINS - 1)].append(anchor["correct"])
    return [
        {"from": number / NUM_BINS, "to": (number + 1) / NUM_BINS, "share": share_of(correct)}
        for number, correct in enumerate(bins)
    ]
