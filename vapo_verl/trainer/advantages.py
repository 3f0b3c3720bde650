"""The ``vapo/advantage/*`` metrics of a step."""

from collections.abc import Hashable, Sequence
from dataclasses import asdict

import torch

from vapo_verl.advantage.origin import advantage_origin
from vapo_verl.advantage.vapo import AdvantageStats
from vapo_verl.config import VapoConfig
from vapo_verl.rollout.sample import SampleRecord


def stats_metrics(stats: AdvantageStats) -> dict[str, float]:
    """What the estimator met in a step."""
    return {f"vapo/advantage/{name}": value for name, value in asdict(stats).items()}


def origin_metrics(
    records: Sequence[SampleRecord], group_ids: Sequence[Hashable], settings: VapoConfig
) -> dict[str, float]:
    """What a step's advantages come from, from the records of its responses.

    A KL in the reward is left out here.
    """
    weights = settings.reward
    parts = [record.reward for record in records]
    plain = [
        weights.accuracy_weight * part.accuracy + weights.format_weight * part.format
        for part in parts
    ]
    origin = advantage_origin(
        torch.tensor([part.total for part in parts]),
        torch.tensor(plain),
        torch.tensor([part.accuracy for part in parts]),
        group_ids,
        normalize_by_std=settings.advantage.normalize_by_std,
    )
    return {f"vapo/advantage/{name}": value for name, value in asdict(origin).items()}
