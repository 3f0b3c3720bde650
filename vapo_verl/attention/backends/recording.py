"""Mixins that make a vLLM attention backend record the visual attention of its queries.

They extend the two classes of a backend. The metadata builder is the last place before the
forward where the batch's rows are final; the implementation's `forward` is the only place where a
layer's queries and its KV cache meet.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The rows of one forward pass: views of the runner's persistent buffers, on its device."""

    query_start_loc: Tensor
    """int32 [rows + 1]: row r's queries are query_start_loc[r] .. query_start_loc[r + 1] - 1."""
    seq_lens: Tensor
    """int32 [rows]: keys of each row, its newest query's own included; 0 for a padded row."""
    block_table: Tensor
    """int32 [rows, max blocks]: where a row's keys lie in the paged cache."""


class Clock(Protocol):
    """The part of `OverheadMeter` used here."""

    def recording(self) -> AbstractContextManager[None]: ...


class Recorder(Protocol):
    """The part of `Capture` used here."""

    ratio: Tensor
    """[captured layers, rows]"""
    spans: Tensor

    @property
    def clock(self) -> Clock: ...

    def begin_forward(self) -> None: ...


class RecordingBuilder:
    """Mixin of an `AttentionMetadataBuilder`: announces the batch, and keeps it as `rows`."""

    capture: Recorder | None = None

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, *args: Any, **kwargs: Any
    ) -> Any:
        metadata = super().build(common_prefix_len, common_attn_metadata, *args, **kwargs)  # type: ignore[misc]
        if self.capture is not None:  # None while vLLM profiles the memory of CUDA graphs
            self.capture.begin_forward()
        common = common_attn_metadata
        metadata.rows = Batch(
            query_start_loc=common.query_start_loc,
            seq_lens=common.seq_lens,
            block_table=common.block_table_tensor,
        )
        return metadata

    def update_block_table(self, metadata: Any, blk_table: Tensor, slot_mapping: Tensor) -> Any:
        """vLLM's shortcut for a KV cache group whose batch is that of a group built before."""
        updated = super().update_block_table(metadata, blk_table, slot_mapping)  # type: ignore[misc]
        updated.rows = replace(metadata.rows, block_table=blk_table)
        return updated


class RecordingImpl:
    """Mixin of an `AttentionImpl`: after the attention, the visual attention ratio of each row."""

    capture: Recorder | None = None
    """Set by the worker on the layers that are captured, once the model is loaded."""
    slot = -1
    """This layer's row of the capture's `ratio` [captured layers, rows]."""

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        attended = super().forward(  # type: ignore[misc]
            layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs
        )
        if self.capture is not None and attn_metadata is not None:
            with self.capture.clock.recording():
                self.record(self.capture, query, kv_cache, attn_metadata.rows)
        return attended

    def check_recordable(self, dtype: torch.dtype) -> None:
        """Refuse a layer whose attention is more than softmax(scale * q.k).

        Args:
            dtype: of the queries and the KV cache.

        Raises:
            ValueError: names the unsupported feature.
        """
        for extra in ("logits_soft_cap", "alibi_slopes", "sinks"):
            value = getattr(self, extra, None)
            if value is not None and (not isinstance(value, int | float) or value > 0):
                raise ValueError(
                    f"visual attention does not work with a model that uses {extra}: its layers "
                    "weigh keys by more than softmax(scale * q.k); leave capture off"
                )

    def record(self, capture: Recorder, query: Tensor, kv_cache: Tensor, batch: Batch) -> None:
        """Write row r's ratio to `capture.ratio[self.slot, r]`, from its last query.

        Args:
            query: [tokens, heads, head_dim] of the complete batch, padded at the end.
            kv_cache: the layer's paged cache in the backend's own layout.
        """
        raise NotImplementedError
