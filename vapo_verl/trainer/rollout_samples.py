"""Rows of the sampled-rollout files, read from the replay buffer."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from transformers import PretrainedConfig

from vapo_verl.anchors import AnchorResult
from vapo_verl.rollout import model_families
from vapo_verl.rollout.prompts import stored_images
from vapo_verl.rollout.sample import RECORD_FIELD, SampleRecord
from vapo_verl.rollout.transfer import read_columns
from vapo_verl.run_folder.images import small_images

FIELDS = [
    "prompts",
    "responses",
    "response_mask",
    "visual_attention",
    "advantages",
    "rollout_log_probs",
    "old_log_probs",
    "extra_fields",
    "reward_model",
    "data_source",
    "index",
]


def sample_rows(
    keys: Sequence[str], partition_id: str, tokenizer: Any, step: int
) -> list[dict[str, Any]]:
    """One row of ``ROLLOUT_SCHEMA`` per key (``{uid}_{sample}_{output}``)."""
    columns = read_columns(keys, partition_id, FIELDS)
    images = _images_by_uid(keys)
    return [
        {
            **_row(key, step, tokenizer, {name: values[i] for name, values in columns.items()}),
            "images": images[_uid(key)],
        }
        for i, key in enumerate(keys)
    ]


def captured_layers(layers: str | Sequence[int] | None, model: PretrainedConfig) -> list[int]:
    """Decoder layers in ``visual_attention_layers``, for a value of ``vapo.attention.layers``."""
    return model_families.captured_layers(model.get_text_config(decoder=True).to_dict(), layers)


def _images_by_uid(keys: Sequence[str]) -> dict[str, list[bytes | None]]:
    """Images of each prompt, fetched once however many of its responses are among the keys."""
    uids = list(dict.fromkeys(map(_uid, keys)))
    return {uid: small_images(images) for uid, images in stored_images(uids).items()}


def _uid(key: str) -> str:
    return key.rsplit("_", 2)[0]


def _row(key: str, step: int, tokenizer: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    uid, sample, _ = key.rsplit("_", 2)
    record = SampleRecord.from_plain(row["extra_fields"][RECORD_FIELD])
    layers = row["extra_fields"].get("visual_attention_layers")
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
        "tokens": [tokenizer.decode([token_id]) for token_id in response_ids],
        "visual_attention": row["visual_attention"].tolist(),
        "visual_attention_layers": None if layers is None else layers.tolist(),
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
    """The answer, or several that are correct, as one text."""
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
