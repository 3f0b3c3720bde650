"""Reading fields of the replay buffer, whose containers differ between storage back ends."""

from typing import Any

import torch


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
