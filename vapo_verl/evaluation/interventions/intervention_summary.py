"""Each intervention against the plain response of the same row."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vapo_verl.analysis.statistics import finite, paired_difference, paired_shares, share_of
from vapo_verl.evaluation.interventions import INTERVENTIONS, PLAIN
from vapo_verl.evaluation.probing.attention_summary import attention_summary

Record = Mapping[str, Any]


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """What `summary.json` holds; of at least one record.

    `responses` has each kind alone. `against_plain` has, for each intervention, `accuracy`: the
    paired difference and McNemar's test, and `num_tokens`: the paired difference in tokens the
    model wrote.
    """
    return {
        "num_rows": len(records),
        "responses": {name: _of(records, name) for name in (PLAIN, *INTERVENTIONS)},
        "against_plain": {
            name: {
                "accuracy": paired_shares(_right(records, PLAIN), _right(records, name)),
                "num_tokens": finite(
                    asdict(
                        paired_difference(
                            "num_tokens", _lengths(records, PLAIN), _lengths(records, name)
                        )
                    )
                ),
            }
            for name in INTERVENTIONS
        },
    }


def _of(records: Sequence[Record], name: str) -> dict[str, Any]:
    responses = [record["responses"][name] for record in records]
    return {
        "accuracy": share_of([response["right"] for response in responses]),
        "truncated": share_of([response["finish"] == "length" for response in responses]),
        "mean_tokens": float(np.mean([response["num_tokens"] for response in responses])),
        "mean_insertions": float(np.mean([len(response["insertions"]) for response in responses])),
        "attention": attention_summary(response["attention"] for response in responses),
    }


def _right(records: Sequence[Record], name: str) -> np.ndarray:
    return np.array([record["responses"][name]["right"] for record in records], dtype=bool)


def _lengths(records: Sequence[Record], name: str) -> dict[int, float]:
    return {record["row"]: float(record["responses"][name]["num_tokens"]) for record in records}
