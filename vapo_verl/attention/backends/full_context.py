"""Recording on CUDA with a backend that does not return its log-sum-exp."""

from __future__ import annotations

import torch
from torch import Tensor

from vapo_verl.attention.backends.recording import Batch, Recorder, RecordingImpl
from vapo_verl.attention.kernels import kv_views, layout_of
from vapo_verl.attention.kernels.cuda import visual_ratio
from vapo_verl.attention.worker import PLAIN_CACHE_DTYPES


class FullContextImpl(RecordingImpl):
    """Mixin for FLASH_ATTN, TRITON_ATTN and FLASHINFER: the kernel over a row's full context."""

    kv_cache_dtype: str
    num_kv_heads: int
    scale: float
    sliding_window: tuple[int, int]
    """Keys to the left and right of a query's own; -1 for all."""
    attn_type: str = "decoder"
    chunk_lookback: int = -1
    """Of TRITON_ATTN: chunks a query sees; -1 for all."""

    def record(
        self,
        capture: Recorder,
        query: Tensor,
        kv_cache: Tensor,
        batch: Batch,
        lse: Tensor | None = None,
    ) -> None:
        """As `RecordingImpl.record`; with the `lse` of the layer's attention, visual keys only."""
        left = self.sliding_window[0]
        layout = layout_of(kv_cache, self.num_kv_heads, query.shape[2])
        visual_ratio(
            query,
            kv_views(kv_cache, layout).key,
            batch.query_start_loc,
            batch.seq_lens,
            batch.block_table,
            capture.spans,
            self.scale,
            capture.ratio[self.slot],
            lse=lse,
            window=left + 1 if left >= 0 else None,
        )

    def check_recordable(self, dtype: torch.dtype) -> None:
        super().check_recordable(dtype)
        refused = None
        if self.kv_cache_dtype not in PLAIN_CACHE_DTYPES:
            refused = f"kv_cache_dtype={self.kv_cache_dtype}: quantized keys are not read; use auto"
        elif self.attn_type != "decoder":
            refused = f"attn_type={self.attn_type}: its keys are not the prompt's"
        elif self.chunk_lookback >= 0:
            refused = f"chunk_lookback={self.chunk_lookback}: not all older keys are seen"
        if refused:
            raise ValueError(
                f"visual attention does not work with a layer of {refused}, or leave capture off"
            )
