"""How much the exchanged image changes, by cut."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vapo_verl.analysis.statistics import paired_shares, share_of
from vapo_verl.evaluation.image_swap import EXCHANGES
from vapo_verl.evaluation.probing.attention_summary import attention_summary

Record = Mapping[str, Any]


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """What `summary.json` holds; of at least one record.

    For each exchange and cut: `accuracy` of the responses that go on with the exchanged image,
    `drop` the paired difference from the untouched responses, `agreement` the share that keeps the
    untouched answer, and means over responses of what is left of them behind the cut: `kl` and
    `logprob_drop` in nats a token, and `attention`, that of the untouched response. `claims` are
    those asked at the cut: right with the own image and with the exchanged one.
    """
    return {
        "num_rows": len(records),
        "accuracy": share_of([record["right"] for record in records]),
        "truncated": share_of([record["finish"] == "length" for record in records]),
        "same_size": share_of([record["same_size"] for record in records]),
        "mean_tokens": float(np.mean([record["num_tokens"] for record in records])),
        "exchanges": {
            exchange: [
                _at_cut(records, exchange, number)
                for number in range(len(records[0]["exchanges"][exchange]["cuts"]))
            ]
            for exchange in EXCHANGES
        },
        "attention": attention_summary(record["attention"] for record in records),
    }


def _at_cut(records: Sequence[Record], exchange: str, number: int) -> dict[str, Any]:
    exchanged = [record["exchanges"][exchange] for record in records]
    cuts = [each["cuts"][number] for each in exchanged]
    positions = [cut["position"] for cut in cuts]
    own = np.array([record["right"] for record in records])
    now = np.array([cut["right"] for cut in cuts])
    pairs = list(zip(records, cuts, strict=True))
    return {
        "target": cuts[0]["target"],
        "accuracy": share_of(now),
        "drop": paired_shares(own, now),
        "agreement": share_of([record["answer"] == cut["answer"] for record, cut in pairs]),
        "kl": _mean_behind([each["kl"] for each in exchanged], positions),
        "logprob_drop": _mean_behind([each["logprob_drop"] for each in exchanged], positions),
        "attention": _mean_behind([record["attention"] for record in records], positions),
        "claims": _claims(records, exchange, positions),
    }


def _claims(records: Sequence[Record], exchange: str, positions: Sequence[int]) -> dict[str, Any]:
    pairs = [
        (own, other)
        for record, position in zip(records, positions, strict=True)
        for own, other in zip(
            record["claims"], record["exchanges"][exchange]["claims"], strict=True
        )
        if own["position"] == position
    ]
    return {
        "own": share_of([own["correct"] for own, _ in pairs]),
        "exchanged": share_of([other["correct"] for _, other in pairs]),
        "agreement": share_of([own["answer"] == other["answer"] for own, other in pairs]),
    }


def _mean_behind(
    values: Sequence[Sequence[float | None]], positions: Sequence[int]
) -> float | None:
    """Mean over responses of the mean over their tokens from a position on; None of none."""
    means = []
    for of_response, position in zip(values, positions, strict=True):
        behind = [value for value in of_response[position:] if value is not None]
        if behind:
            means.append(float(np.mean(behind)))
    return float(np.mean(means)) if means else None
