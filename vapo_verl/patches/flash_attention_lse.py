"""Patch of vLLM 0.24: makes the LSE readable that FlashAttention computes beside its output.

FlashAttention's kernels always compute the log-sum-exp of each query's logits, but
`FlashAttentionImpl.forward` does not ask for it (`return_softmax_lse`) and could not return it.
Without it, the capture of visual attention has to read the full context instead of the visual keys
alone. Alternatives are a copy of that method or a second attention call; this patch wraps the
function it calls. Can go when an implementation returns its LSE on request.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import Tensor

FUNCTION = "flash_attn_varlen_func"


class LSETap:
    """Replaces `flash_attn_varlen_func` by the same function, which keeps `lse` while `open`.

    One forward at a time, as in a worker without dual batch overlap.
    """

    lse: Tensor | None = None
    """float32 [heads, tokens], natural log, of the last call while open. Calls that ask for it
    themselves (the two halves of cascade attention) are skipped: they see a part of the keys."""

    def __init__(self, attention: Callable[..., Any]) -> None:
        self._attention = attention
        self._open = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._open or kwargs.get("return_softmax_lse"):
            return self._attention(*args, **kwargs)
        output, self.lse = self._attention(*args, **{**kwargs, "return_softmax_lse": True})
        return output

    @contextmanager
    def open(self) -> Iterator[None]:
        self._open = True
        try:
            yield
        finally:
            self._open, self.lse = False, None


def install(module: ModuleType) -> LSETap | None:
    """Put the tap into vLLM's flash attention module, once; None if there is nothing to tap."""
    attention = getattr(module, FUNCTION, None)
    if isinstance(attention, LSETap):
        return attention
    if attention is None or "return_softmax_lse" not in inspect.signature(attention).parameters:
        return None
    tap = LSETap(attention)
    setattr(module, FUNCTION, tap)
    return tap
