"""vLLM's CPU attention backend, recording."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from vapo_verl.attention.backends.recording import Batch, Recorder, RecordingBuilder, RecordingImpl
from vapo_verl.attention.kernels.cpu import KeyLayout, visual_ratio

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class RecordingCPUImpl(RecordingImpl, CPUAttentionBackendImpl):
    """Reads the keys in the layout that vLLM's instruction set dictates."""

    def record(self, capture: Recorder, query: Tensor, kv_cache: Tensor, batch: Batch) -> None:
        visual_ratio(
            query,
            kv_cache,
            KeyLayout.of(kv_cache.dtype, self.isa),
            batch.query_start_loc,
            batch.seq_lens,
            batch.block_table,
            capture.spans,
            self.scale,
            capture.ratio[self.slot],
            window=self.sliding_window if self.sliding_window > 0 else None,
        )

    def check_recordable(self, dtype: torch.dtype) -> None:
        super().check_recordable(dtype)
        KeyLayout.of(dtype, self.isa)


class RecordingCPUBuilder(RecordingBuilder, CPUAttentionMetadataBuilder):
    pass


class RecordingCPUBackend(CPUAttentionBackend):
    """Registered in place of CPU_ATTN, whose name it keeps."""

    @staticmethod
    def get_impl_cls() -> type[Any]:
        return RecordingCPUImpl

    @staticmethod
    def get_builder_cls() -> type[Any]:
        return RecordingCPUBuilder
