"""vLLM's Triton attention backend, recording."""

from __future__ import annotations

from typing import Any

from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)

from vapo_verl.attention.backends.full_context import FullContextImpl
from vapo_verl.attention.backends.recording import RecordingBuilder


class RecordingTritonAttentionImpl(FullContextImpl, TritonAttentionImpl):
    pass


class RecordingTritonAttentionBuilder(RecordingBuilder, TritonAttentionMetadataBuilder):
    pass


class RecordingTritonAttentionBackend(TritonAttentionBackend):
    """Registered in place of TRITON_ATTN, whose name it keeps."""

    @staticmethod
    def get_impl_cls() -> type[Any]:
        return RecordingTritonAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[Any]:
        return RecordingTritonAttentionBuilder
