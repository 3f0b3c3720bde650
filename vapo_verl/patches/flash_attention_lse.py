"""Patch of vLLM 0.24: what FlashAttention computes beside its output, the LSE, becomes readable.

FlashAttention's kernels always compute the log-sum-exp of each query's logits, but
`FlashAttentionImpl.forward` does not ask for it (`return_softmax_lse`) and could not return it.
To capture visual attention without it costs a walk of the full context instead of the visual keys
alone. The other ways are a copy of that method or a second attention call; this wraps the function
it calls. Can go when an implementation can be asked for its LSE.
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
    """Replaces `flash_attn_varlen_func`: the same function, but while `open`, `lse` is kept.

    One forward at a time, as in a worker without dual batch overlap.
    """

    lse: Tensor | None = None
    """float32 [heads, tokens], natural log, of the last call while open that did not itself ask
    for it; such calls (the two halves of cascade attention) see only a part of the keys."""

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
    """Put the tap into vLLM's flash attention module, once; None where it has nothing to tap."""
    attention = getattr(module, FUNCTION, None)
    if isinstance(attention, LSETap):
        return attention
    if attention is None or "return_softmax_lse" not in inspect.signature(attention).parameters:
        return None
    tap = LSETap(attention)
    setattr(module, FUNCTION, tap)
    return tap
