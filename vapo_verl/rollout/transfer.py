"""All calls of TransferQueue: rows by key, in partitions, from one process to others.

veRL keeps the responses of a step there, in the partitions ``train`` and ``val``. What the
responses to a prompt share is kept once, in a separate partition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.utils.transferqueue_utils import kv_batch_meta2batch_meta

__all__ = ["KVBatchMeta"]

LAYERS_FIELD = "visual_attention_layers"
NOT_FOR_MODELS = {
    *("raw_prompt", "claims", "reward_model", "data_source", "extra_info", "index", "prompt_uid"),
    *("agent_name", "tools_kwargs", "interaction_kwargs", "extra_fields", "visual_attention"),
    LAYERS_FIELD,
}
"""Fields of a response that no model reads: of its row, of its reward, of its report."""


async def put_tag(key: str, partition_id: str, tag: Mapping[str, Any]) -> None:
    """Set a row's tag."""
    await tq.async_kv_put(key=key, partition_id=partition_id, tag=dict(tag))


def register_prompts(uids: Sequence[str], partition_id: str, step: int) -> None:
    """Tell veRL's replay buffer that responses to these prompts are being made, as veRL does."""
    tag = {"is_prompt": True, "status": "pending", "global_steps": step}
    tq.kv_batch_put(keys=list(uids), partition_id=partition_id, tags=[tag] * len(uids))


async def put_row(key: str, partition_id: str, row: Mapping[str, Any]) -> None:
    """Write a row of any objects."""
    await tq.async_kv_batch_put(
        keys=[key],
        fields=list_of_dict_to_tensordict([dict(row)]),
        tags=[{}],
        partition_id=partition_id,
    )


def read(keys: Sequence[str], partition_id: str, fields: Sequence[str]) -> Any:
    """The fields of some rows, as TransferQueue returns them."""
    return tq.kv_batch_get(keys=list(keys), partition_id=partition_id, select_fields=list(fields))


def read_rows(keys: Sequence[str], partition_id: str) -> list[dict[str, Any]]:
    """All fields of some rows."""
    if not keys:
        return []
    data = tq.kv_batch_get(keys=list(keys), partition_id=partition_id)
    columns = {name: column_values(data.get(name)) for name in data.keys()}  # noqa: SIM118
    return [{name: column[i] for name, column in columns.items()} for i in range(len(keys))]


def put_rows(
    keys: Sequence[str],
    partition_id: str,
    rows: Sequence[Mapping[str, Any]],
    tags: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write rows of any objects, one by one as the agent loops do."""
    for place, (key, row) in enumerate(zip(keys, rows, strict=True)):
        tq.kv_batch_put(
            keys=[key],
            fields=list_of_dict_to_tensordict([dict(row)]),
            tags=[dict(tags[place])] if tags else [{}],
            partition_id=partition_id,
        )


def write(keys: Sequence[str], partition_id: str, fields: TensorDict) -> None:
    """Set fields of some rows."""
    tq.kv_batch_put(keys=list(keys), partition_id=partition_id, fields=fields)


def read_columns(
    keys: Sequence[str], partition_id: str, fields: Sequence[str]
) -> dict[str, list[Any]]:
    """The values of each field, in the order of `keys`."""
    data = read(keys, partition_id, fields)
    return {field: column_values(data[field]) for field in fields}


def column_values(column: Any) -> list[Any]:
    """One value per row: tensors of a ragged or dense column, objects of any other.

    TransferQueue returns objects as a list, a NonTensorStack or a numpy array, depending on its
    storage back end.
    """
    if isinstance(column, torch.Tensor):
        return list(column.unbind())
    return [getattr(value, "data", value) for value in column]


def clear(keys: Sequence[str], partition_id: str) -> None:
    """Remove rows."""
    if keys:
        tq.kv_clear(keys=list(keys), partition_id=partition_id)


def keys_in(partition_id: str) -> list[str]:
    """The keys of a partition; empty if there is no such partition."""
    return list(tags_in(partition_id))


def tags_in(partition_id: str) -> dict[str, dict[str, Any]]:
    """The tag of each row of a partition."""
    tags: dict[str, dict[str, Any]] = (tq.kv_list(partition_id) or {}).get(partition_id, {})
    return tags


def for_models(batch: KVBatchMeta) -> KVBatchMeta:
    """The batch with the fields that a forward pass may read; veRL's workers fetch all of them."""
    names = batch.fields or kv_batch_meta2batch_meta(batch).field_names
    return dataclasses.replace(batch, fields=[n for n in names if n not in NOT_FOR_MODELS])
