"""Means over the sampled responses to one prompt at one step, for paired comparisons."""

import math
from typing import Any

from vapo_verl.analysis.attention_curves import ResponseAttention
from vapo_verl.report.explorer_samples import BoundedSample
from vapo_verl.run_folder.rollouts import Rollout

MAX_PROMPTS = 20_000
QUANTITIES = (
    "accuracy",
    "format",
    "total reward",
    "response tokens",
    "anchor accuracy",
    "visual attention",
    "attention slope",
    "attention late / early",
)
"""Per response; each nan if the response has none."""


class PromptMeans:
    """Sums per (step, data source, index), of at most `MAX_PROMPTS` such prompts."""

    def __init__(self, max_prompts: int = MAX_PROMPTS) -> None:
        self._sums: BoundedSample[list[list[float]]] = BoundedSample(max_prompts)
        self._num_rows = 0

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, rollout: Rollout, num_tokens: int, attention: ResponseAttention) -> None:
        """Count one response."""
        index = rollout.cell("index")
        cells = [rollout.cell("step"), rollout.cell("data_source"), index]
        key = "\t".join(map(str, cells if index is not None else [*cells, rollout.cell("uid")]))
        if not self._sums.admits(key):
            return
        sums = self._sums.get(key) or [[0.0, 0.0] for _ in QUANTITIES]
        for total, value in zip(sums, _quantities(rollout, num_tokens, attention), strict=True):
            if math.isfinite(value):
                total[0] += value
                total[1] += 1
        self._sums.put(key, sums)

    def means(self, quantity: str) -> dict[str, float]:
        """Prompt -> mean over its responses; a prompt without a value is absent."""
        place = QUANTITIES.index(quantity)
        sums = {key: values[place] for key, values in self._sums.items()}
        return {key: total / count for key, (total, count) in sums.items() if count}


def _quantities(rollout: Rollout, num_tokens: int, attention: ResponseAttention) -> list[float]:
    reward: dict[str, Any] = rollout.cell("reward") or {}
    anchors = rollout.cell("anchors") or []
    answers = [bool(anchor["correct"]) for anchor in anchors if anchor["correct"] is not None]
    return [
        _number(reward.get("accuracy")),
        _number(reward.get("format")),
        _number(reward.get("total")),
        float(num_tokens),
        sum(answers) / len(answers) if answers else math.nan,
        attention.mean,
        attention.slope,
        attention.late_over_early,
    ]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
