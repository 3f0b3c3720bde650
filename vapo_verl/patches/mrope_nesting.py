"""Position ids of equal-length sequences keep their ragged dimension (veRL 0.9.1, any device).

veRL and TransferQueue rebuild the ``(4, L_i)`` mrope ids of a batch with ``as_nested_tensor``. When
all ``L_i`` are equal torch takes dimension 1, the 4, for the ragged one, and
``maybe_fix_3d_position_ids`` then fails with "split_with_sizes expects". Can go when veRL passes
``ragged_idx=2`` itself.
"""

from __future__ import annotations

from tensordict import TensorDict
from verl.utils.tensordict_utils import nested_tensor_from_tensor_list

LENGTH_DIM = 2
"""Dimension of a nested [batch, 4, L_i] tensor that differs between rows."""


def with_ragged_positions(data: TensorDict) -> TensorDict:
    """``data`` with ``position_ids`` rebuilt along the length, where they are nested otherwise."""
    ids = data.get("position_ids", None)
    if ids is not None and ids.is_nested and ids.dim() == 3 and ids._ragged_idx != LENGTH_DIM:
        data["position_ids"] = nested_tensor_from_tensor_list(
            list(ids.unbind()), ragged_idx=LENGTH_DIM
        )
    return data
