"""vLLM's FlashAttention backend, recording."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.attention.backends import flash_attn
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)

from vapo_verl.attention.backends.full_context import FullContextImpl
from vapo_verl.attention.backends.recording import Batch, Recorder, RecordingBuilder
from vapo_verl.patches import flash_attention_lse

if TYPE_CHECKING:
    from torch import Tensor


class RecordingFlashAttentionImpl(FullContextImpl, FlashAttentionImpl):
    """Reads visual keys only, given the LSE of the attention call that the layer makes anyway.

    Without an LSE, as in cascade attention, it reads the full context.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tap = flash_attention_lse.install(flash_attn)
        """None where vLLM's function cannot return an LSE."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.capture is None or self.tap is None:
            return super().forward(*args, **kwargs)
        with self.tap.open():
            return super().forward(*args, **kwargs)

    def record(
        self,
        capture: Recorder,
        query: Tensor,
        kv_cache: Tensor,
        batch: Batch,
        lse: Tensor | None = None,
    ) -> None:
        if self.tap is not None:
            lse = self.tap.lse
        super().record(capture, query, kv_cache, batch, lse)


class RecordingFlashAttentionBuilder(RecordingBuilder, FlashAttentionMetadataBuilder):
    pass


class RecordingFlashAttentionBackend(FlashAttentionBackend):
    """Registered in place of FLASH_ATTN, whose name it keeps."""

    @staticmethod
    def get_impl_cls() -> type[Any]:
        return RecordingFlashAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[Any]:
        return RecordingFlashAttentionBuilder
