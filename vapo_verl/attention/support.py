"""Refuse, at start, engine configurations that do not support visual attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from vllm.config import VllmConfig

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PLAIN_CACHE_DTYPES = ("auto", "float32", "bfloat16", "float16", "half", "float")


def check_supported(config: VllmConfig) -> None:
    """Refuse settings that would give incorrect values or none.

    Raises:
        ValueError: the first unsupported setting, its value and the fix.
    """
    parallel, model = config.parallel_config, config.model_config
    one_stage = "a worker must see all layers of a token's forward"
    one_row = "a request must be one row of the forward, with all of its keys"
    for key, value, why in (
        ("pipeline_parallel_size", parallel.pipeline_parallel_size, one_stage),
        ("decode_context_parallel_size", parallel.decode_context_parallel_size, one_row),
        ("prefill_context_parallel_size", parallel.prefill_context_parallel_size, one_row),
    ):
        if value > 1:
            raise ValueError(_message(key, value, why, "1"))
    for key, value, why, fix in (
        ("enable_dbo", parallel.use_ubatching, "the batch runs in two halves", "false"),
        ("speculative_config", config.speculative_config, one_row, "none"),
        (
            "enable_return_routed_experts",
            model.enable_return_routed_experts,
            "routed experts and visual attention share one field of the output",
            "false",
        ),
        (
            "VLLM_USE_V2_MODEL_RUNNER",
            config.use_v2_model_runner,
            "that runner settles the order of the rows elsewhere",
            "0 in the environment",
        ),
        ("is_encoder_decoder", model.is_encoder_decoder, "images are not in the decoder", ""),
    ):
        if value:
            raise ValueError(_message(key, value, why, fix))
    if model.dtype not in DTYPES:
        raise ValueError(_message("dtype", model.dtype, "no kernel reads it", "bfloat16"))
    cache_dtype = config.cache_config.cache_dtype
    if cache_dtype not in PLAIN_CACHE_DTYPES:
        raise ValueError(
            _message("kv_cache_dtype", cache_dtype, "quantized keys are not read", "auto")
        )


def _message(key: str, value: object, why: str, fix: str) -> str:
    fix_text = f"use {key}={fix}, or leave capture off" if fix else "leave capture off"
    return f"visual attention does not work with {key}={value}: {why}; {fix_text}"
