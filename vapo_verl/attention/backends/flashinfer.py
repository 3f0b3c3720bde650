"""vLLM's FlashInfer attention backend, recording."""

from __future__ import annotations

from typing import Any

from vllm.v1.attention.backends.flashinfer import (
    FlashInferBackend,
    FlashInferImpl,
    FlashInferMetadataBuilder,
)

from vapo_verl.attention.backends.full_context import FullContextImpl
from vapo_verl.attention.backends.recording import RecordingBuilder


class RecordingFlashInferImpl(FullContextImpl, FlashInferImpl):
    pass


class RecordingFlashInferBuilder(RecordingBuilder, FlashInferMetadataBuilder):
    pass


class RecordingFlashInferBackend(FlashInferBackend):
    """Registered in place of FLASHINFER, whose name it keeps."""

    @staticmethod
    def get_impl_cls() -> type[Any]:
        return RecordingFlashInferImpl

    @staticmethod
    def get_builder_cls() -> type[Any]:
        return RecordingFlashInferBuilder
