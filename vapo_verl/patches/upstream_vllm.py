"""Changes of vllm 0.24."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any


def keep_linear_weights() -> None:
    """Leave `weight` on vLLM's CPU linear layers, so that weights can be updated more than once.

    vLLM packs them for oneDNN and then drops ``layer.weight`` (model_executor/layers/utils.py).
    """
    import vllm._custom_ops as ops

    ops._supports_onednn = False


def keep_finished_outputs(engine: Any, keep: Callable[[Any], None]) -> None:
    """Hand every finished `RequestOutput` of an `AsyncLLM` to `keep`, in the task that asked.

    veRL turns vLLM's output into a `TokenOutput` in the middle of its server's `generate`, without
    the per-token arrays.
    """
    generate = engine.generate

    async def generate_and_keep(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async for output in generate(*args, **kwargs):
            if output.finished:
                keep(output)
            yield output

    engine.generate = generate_and_keep
