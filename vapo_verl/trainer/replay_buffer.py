"""Reading fields of the replay buffer, whose containers differ between storage back ends."""

from typing import Any

import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta


def read_visual_attention(batch: KVBatchMeta) -> torch.Tensor:
    """Ratios [B, T] in the order of ``batch.keys``, nan where unknown.

    T is the width of the padded ``response_mask``, with which veRL calls an estimator.
    """
    data = tq.kv_batch_get(
        keys=batch.keys,
        partition_id=batch.partition_id,
        select_fields=["response_mask", "visual_attention"],
    )
    width = data["response_mask"].to_padded_tensor(0).size(1)
    return fit_width(data["visual_attention"].to_padded_tensor(float("nan")), width)


def column_values(column: Any) -> list[Any]:
    """One value per row: tensors of a ragged or dense column, objects of any other.

    TransferQueue hands objects out as a list, a NonTensorStack or a numpy array.
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
