"""The ``vapo/*`` metrics of a step, from the records of its responses, and its sampled rollouts.

A mean over nothing is nan, not 0: a step that probed no response has no anchor accuracy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from vapo_verl.advantage.grpo import RewardParts, advantage_origin
from vapo_verl.advantage.vapo import AdvantageStats
from vapo_verl.analysis.position_curves import EARLY, LATE
from vapo_verl.anchors import AnchorResult, token_texts
from vapo_verl.anchors.signal import (
    AGREEMENT,
    DRAW_FRACTION,
    SPREAD,
    ProbedResponse,
    claim_agreement,
    perception_spread,
)
from vapo_verl.config import VapoConfig
from vapo_verl.rollout.prompts import stored_images, uid_of
from vapo_verl.rollout.reward_function import RewardFunctionFailed, function_path
from vapo_verl.rollout.reward_judge import JudgeFailed
from vapo_verl.rollout.sample import RECORD_FIELD, SampleRecord
from vapo_verl.rollout.transfer import LAYERS_FIELD, read_columns
from vapo_verl.run_folder.rollouts import small_images

if TYPE_CHECKING:
    from torch import Tensor


FIELDS = [
    "prompts",
    "responses",
    "response_mask",
    "visual_attention",
    "advantages",
    "rollout_log_probs",
    "old_log_probs",
    "extra_fields",
    LAYERS_FIELD,
    "reward_model",
    "data_source",
    "index",
]
FUNCTION_FAILED, JUDGE_FAILED = "vapo/reward/function_failed", "vapo/reward/judge_failed"
FAILURES = {FUNCTION_FAILED: RewardFunctionFailed, JUDGE_FAILED: JudgeFailed}
"""Metric -> the error whose responses it counts."""
GROUP_NORMALISED = ("vapo", "grpo", "grpo_vectorized")
"""Estimators whose advantages :func:`advantage_origin` computes from the parts of rewards."""


def reward_metrics(records: Sequence[SampleRecord]) -> dict[str, float]:
    """Means of the reward's parts, before their weights, and of the total."""
    parts = ("accuracy", "format", "perception", "total")
    return {f"vapo/reward/{part}": mean(getattr(r.reward, part) for r in records) for part in parts}


def failure_metrics(reasons: Counter[str]) -> dict[str, int]:
    """How many of a step's responses failed in a user's function or in the judge.

    Args:
        reasons: of row failures, by "Type: message".
    """
    counts = {
        metric: sum(n for reason, n in reasons.items() if reason.startswith(f"{error.__name__}:"))
        for metric, error in FAILURES.items()
    }
    return {metric: count for metric, count in counts.items() if count}


def used_metrics(config: Any) -> frozenset[str]:
    """The failure metrics that responses of a composed config may have."""
    function, judge = function_path(config), config.vapo.reward.judge.model
    return frozenset(
        name for name, on in ((FUNCTION_FAILED, function), (JUDGE_FAILED, judge)) if on
    )


def anchor_metrics(records: Sequence[SampleRecord]) -> dict[str, float]:
    """Results and cost of the probes.

    ``accuracy_early`` and ``accuracy_late`` are those of anchors in the first and in the last third
    of their response. ``fallback_rate`` is the fraction of anchors without a logical boundary of
    their own, ``prefix_hit_rate`` the fraction of probe prompt tokens in the engine's cache.
    ``probe_s`` is the mean wall time that a graded response waited for its answers. Token counts
    are vLLM's own.
    """
    probed = [record for record in records if record.anchors]
    anchors = [(a, a.anchor.position / r.response_length) for r in probed for a in r.anchors]
    asked = [anchor for anchor, _ in anchors]
    prompt_tokens = sum(a.num_prompt_tokens for a in asked)
    cached_tokens = sum(a.num_cached_tokens for a in asked)
    values = {
        "accuracy": mean(a.correct for a in asked),
        "accuracy_early": mean(a.correct for a, progress in anchors if progress <= EARLY),
        "accuracy_late": mean(a.correct for a, progress in anchors if progress >= LATE),
        "yes_rate": mean(a.answer for a in asked),
        "probed_fraction": len(probed) / len(records) if records else math.nan,
        "fallback_rate": mean(not a.anchor.own_boundary for a in asked),
        "prefix_hit_rate": cached_tokens / prompt_tokens if prompt_tokens else math.nan,
        "probe_s": mean(r.times.probed_at - r.times.asked_at for r in probed),
        "prefill_tokens": float(prompt_tokens - cached_tokens),
        "reused_tokens": float(cached_tokens),
        "encoder_runs_saved": float(sum(map(_encoder_runs_saved, probed))),
        **_added_time(records),
        "num_probes": float(len(asked)),
        "rows_without_claims": mean(r.num_claims == 0 for r in records),
        "claims_skipped": float(sum(r.num_claims_skipped for r in records)),
    }
    return {f"vapo/anchors/{name}": value for name, value in values.items()}


def signal_metrics(
    records: Sequence[SampleRecord], group_ids: Sequence[Hashable], settings: VapoConfig
) -> dict[str, float]:
    """Whether perception distinguishes siblings: see :mod:`vapo_verl.anchors.signal`."""
    responses = [
        ProbedResponse(
            group_id=group,
            results=record.anchors,
            length=record.response_length,
            num_claims=record.num_claims,
            perception=record.reward.perception,
        )
        for record, group in zip(records, group_ids, strict=True)
    ]
    found = perception_spread(
        responses, settings.reward.late_emphasis, paired=settings.anchors.is_paired
    )
    return {
        AGREEMENT: claim_agreement(responses),
        SPREAD: found.spread,
        DRAW_FRACTION: found.draw_fraction,
    }


def _encoder_runs_saved(record: SampleRecord) -> int:
    """Images of the record's probes whose tokens were all in the KV cache: not encoded again."""
    complete = sum(a.num_cached_tokens >= record.image_end for a in record.anchors)
    return complete * record.num_images


def _added_time(records: Sequence[SampleRecord]) -> dict[str, float]:
    """How long probes ran, and how much of it came on top of the rollout.

    ``busy_s``: time in which some response waited for its probes. ``tail_s``: from the end of the
    last response, its grading included, to the last answer: the part that did not overlap with
    generation. ``tail_share``: the tail's fraction of the rollout's wall time.
    """
    intervals = sorted((r.times.asked_at, r.times.probed_at) for r in records if r.anchors)
    if not intervals:
        return {"busy_s": 0.0, "tail_s": 0.0, "tail_share": 0.0}
    busy, reached = 0.0, -math.inf
    for start, end in intervals:
        busy += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    tail = max(reached - max(r.times.generated_at for r in records), 0.0)
    rollout = reached - min(r.times.started_at for r in records)
    return {"busy_s": busy, "tail_s": tail, "tail_share": tail / rollout if rollout else 0.0}


def attention_metrics(visual_attention: Tensor, response_mask: Tensor) -> dict[str, float]:
    """Visual attention ratio over a batch [B, T]: mean, first and last third, slope over progress.

    ``slope`` is the least-squares slope of the ratio against progress t / T_i in (0, 1]: how much
    attention the image loses over a response. Tokens without a value are left out and counted:
    ``missing_fraction`` is their fraction.
    """
    mask = response_mask.bool()
    position = mask.cumsum(dim=1).double()
    progress = position / mask.sum(dim=1, keepdim=True).clamp(min=1)
    known = mask & visual_attention.isfinite()
    values, where = visual_attention[known].double(), progress[known]
    return {
        "vapo/attention/mean": float(values.mean()),
        "vapo/attention/early": float(values[where <= EARLY].mean()),
        "vapo/attention/late": float(values[where >= LATE].mean()),
        "vapo/attention/slope": _slope(where, values),
        "vapo/attention/missing_fraction": float((~known[mask]).double().mean()),
    }


_VALIDATED = {
    "acc": "accuracy",
    "perception": "perception",
    "unparsed": "unparsed",
    "truncated": "truncated",
}
"""Name in a response's `reward_extra_info` -> name of the metric."""


def validation_metrics(
    sources: Sequence[str], infos: Mapping[str, Sequence[float | None]]
) -> dict[str, float]:
    """``val/SOURCE/accuracy`` for every data source, ``perception`` where claims were asked, and
    ``unparsed`` and ``truncated`` of a benchmark file: means over the responses that have them.

    veRL's own metrics are by the number of a prompt's responses that have a value (``mean@7``).

    Args:
        sources: data source of each response.
        infos: name -> value of each response, None where it has none.
    """
    found: dict[str, list[float]] = {}
    for name, what in _VALIDATED.items():
        for source, value in zip(sources, infos.get(name, [None] * len(sources)), strict=True):
            if value is not None:
                found.setdefault(f"val/{source}/{what}", []).append(value)
    return {name: mean(values) for name, values in found.items()}


def has_metric(
    values: Mapping[str, float], name: str, *, is_recorded: bool, probes_claims: bool
) -> bool:
    """Whether a validation has the metric that selects the best checkpoint.

    One in which no response was probed has no ``val/SOURCE/perception``: behind the gate, one
    without a correct response.

    Args:
        values: of the validation.
        is_recorded: an earlier validation had the metric.
        probes_claims: the run measures perception.

    Raises:
        ValueError: the name is no metric of this run; the message lists those there are.
    """
    source = name.removesuffix("/perception")
    is_perception = source != name and f"{source}/accuracy" in values
    if not (name in values or is_recorded or (is_perception and probes_claims)):
        raise ValueError(
            f"vapo.keep_best={name}: the validation has no such metric; set one of "
            f"{', '.join(sorted(values))}"
        )
    return name in values


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean; nan of nothing."""
    known = [float(value) for value in values]
    return math.fsum(known) / len(known) if known else math.nan


def _slope(x: Tensor, y: Tensor) -> float:
    if x.numel() < 2:
        return math.nan
    centred = x - x.mean()
    spread = centred.square().sum()
    return float((centred * y).sum() / spread) if spread > 0 else math.nan


def stats_metrics(stats: AdvantageStats) -> dict[str, float]:
    """The estimator's statistics of a step."""
    return {f"vapo/advantage/{name}": value for name, value in asdict(stats).items()}


def origin_metrics(
    records: Sequence[SampleRecord],
    group_ids: Sequence[Hashable],
    settings: VapoConfig,
    estimator: str,
) -> dict[str, float]:
    """The sources of a step's advantages, from the records of its responses.

    A KL in the reward is left out here. The fractions of perception are absent for an
    ``algorithm.adv_estimator`` that is none of :data:`GROUP_NORMALISED`.
    """
    origin = advantage_origin(
        reward_parts(records, settings),
        torch.tensor([float(bool(record.reward.correct)) for record in records]),
        group_ids,
        normalization=settings.advantage.normalization,
        normalize_by_std=settings.advantage.normalize_by_std,
    )
    return {
        f"vapo/advantage/{name}": value
        for name, value in asdict(origin).items()
        if estimator in GROUP_NORMALISED or not name.startswith("perception_")
    }


def reward_parts(records: Sequence[SampleRecord | None], settings: VapoConfig) -> RewardParts:
    """Parts of the rewards [B] of some responses; nan where there is no record."""
    weights = settings.reward

    def base(record: SampleRecord | None) -> float:
        if record is None:
            return math.nan
        part = record.reward
        return weights.accuracy_weight * part.accuracy + weights.format_weight * part.format

    def perception(record: SampleRecord | None) -> float:
        if record is None or weights.perception_source == "none":
            return math.nan
        passes = record.reward.correct or settings.anchors.gate == "relaxed"
        measured = record.anchors or weights.perception_source == "attention"
        return record.reward.perception if passes and measured else math.nan

    return RewardParts(
        base=torch.tensor([base(record) for record in records]),
        perception=torch.tensor([perception(record) for record in records]),
        weight=weights.perception_weight,
    )


def sample_rows(
    keys: Sequence[str], partition_id: str, tokenizer: Any, step: int
) -> list[dict[str, Any]]:
    """One row of ``ROLLOUT_SCHEMA`` per key (``{uid}_{sample}_{output}``)."""
    columns = read_columns(keys, partition_id, FIELDS)
    images = _images_by_uid(keys)
    return [
        {
            **_row(key, step, tokenizer, {name: values[i] for name, values in columns.items()}),
            "images": images[uid_of(key)],
        }
        for i, key in enumerate(keys)
    ]


def _images_by_uid(keys: Sequence[str]) -> dict[str, list[bytes | None]]:
    """Images of each prompt, fetched once however many of its responses are among the keys."""
    uids = list(dict.fromkeys(map(uid_of, keys)))
    return {uid: small_images(images) for uid, images in stored_images(uids).items()}


def _row(key: str, step: int, tokenizer: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    uid, sample, _ = key.rsplit("_", 2)
    record = SampleRecord.from_plain(row["extra_fields"][RECORD_FIELD])
    prompt_ids, response_ids = row["prompts"].tolist(), row["responses"].tolist()
    return {
        "step": step,
        "uid": uid,
        "sample": int(sample),
        "data_source": row["data_source"],
        "index": int(row["index"]),
        "prompt": tokenizer.decode(prompt_ids, skip_special_tokens=True),
        "response": tokenizer.decode(response_ids, skip_special_tokens=True),
        "prompt_ids": prompt_ids,
        "response_ids": response_ids,
        "tokens": token_texts(tokenizer, response_ids),
        "visual_attention": row["visual_attention"].tolist(),
        LAYERS_FIELD: next((layers.tolist() for layers in row[LAYERS_FIELD]), None),
        "advantages": row["advantages"].tolist(),
        "rollout_log_probs": row["rollout_log_probs"].tolist(),
        "old_log_probs": row["old_log_probs"].tolist(),
        "min_policy_version": record.min_policy_version,
        "max_policy_version": record.max_policy_version,
        "probe_policy_version": record.probe_policy_version,
        "ground_truth": _answer(row["reward_model"]["ground_truth"]),
        "reward": asdict(record.reward),
        "anchors": [_anchor(result) for result in record.anchors],
    }


def _answer(ground_truth: Any) -> str:
    """The answer as text; several accepted ones are joined."""
    if isinstance(ground_truth, list | tuple):
        return " | ".join(map(str, ground_truth))
    return str(ground_truth)


def _anchor(result: AnchorResult) -> dict[str, Any]:
    return {
        "position": result.anchor.position,
        "claim": result.anchor.claim,
        "label": result.anchor.label,
        "answer": result.answer,
        "correct": result.correct,
        "p_yes": result.p_yes,
    }
