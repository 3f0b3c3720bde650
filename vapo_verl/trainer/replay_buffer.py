"""The replay buffer: all calls of TransferQueue, and the containers it returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta

from vapo_verl.rollout.sample import RECORD_FIELD, SampleRecord

__all__ = [
    "KVBatchMeta",
    "StepResponses",
    "read_columns",
    "read_responses",
    "read_visual_attention",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResponses:
    """The responses of a step, without padding rows, in the order of `keys`."""

    keys: list[str]
    group_ids: list[str]
    """Equal for responses to the same prompt."""
    records: list[SampleRecord]
    visual_attention: torch.Tensor
    """[B, T], nan where unknown."""
    response_mask: torch.Tensor
    """[B, T]"""


def read_responses(batch: KVBatchMeta) -> StepResponses:
    """What the metrics of a step are computed from."""
    tagged = zip(batch.keys, batch.tags, strict=True)
    keys = [key for key, tag in tagged if not tag.get("is_padding")]
    fields = ["uid", "extra_fields", "visual_attention", "response_mask"]
    data = _read(keys, batch.partition_id, fields)
    return StepResponses(
        keys=keys,
        group_ids=column_values(data["uid"]),
        records=[
            SampleRecord.from_plain(extra[RECORD_FIELD])
            for extra in column_values(data["extra_fields"])
        ],
        visual_attention=data["visual_attention"].to_padded_tensor(float("nan")),
        response_mask=data["response_mask"].to_padded_tensor(0),
    )


def read_visual_attention(batch: KVBatchMeta) -> torch.Tensor:
    """Ratios [B, T] in the order of ``batch.keys``, nan where unknown.

    T is the width of the padded ``response_mask``, with which veRL calls an estimator.
    """
    data = _read(batch.keys, batch.partition_id, ["response_mask", "visual_attention"])
    width = data["response_mask"].to_padded_tensor(0).size(1)
    return fit_width(data["visual_attention"].to_padded_tensor(float("nan")), width)


def read_columns(
    keys: Sequence[str], partition_id: str, fields: Sequence[str]
) -> dict[str, list[Any]]:
    """The values of each field, in the order of `keys`."""
    data = _read(keys, partition_id, fields)
    return {field: column_values(data[field]) for field in fields}


def column_values(column: Any) -> list[Any]:
    """One value per row: tensors of a ragged or dense column, objects of any other.

    TransferQueue returns objects as a list, a NonTensorStack or a numpy array, depending on its
    storage back end.
    """
    if isinstance(column, torch.Tensor):
        return list(column.unbind())
    return [getattr(value, "data", value) for value in column]


def fit_width(values: torch.Tensor, width: int) -> torch.Tensor:
    """``values`` [B, T'] cut or filled with nan to [B, width].

    veRL's padding rows copy a real row's extra fields at that row's length, whatever their own.
    """
    if values.size(1) >= width:
        return values[:, :width]
    return torch.nn.functional.pad(values, (0, width - values.size(1)), value=float("nan"))


def _read(keys: Sequence[str], partition_id: str, fields: Sequence[str]) -> Any:
    return tq.kv_batch_get(keys=list(keys), partition_id=partition_id, select_fields=list(fields))
