"""The visual attention ratio on vLLM's CPU KV cache: compiled C, or PyTorch without a compiler."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vapo_verl.attention import reference
from vapo_verl.attention.kernels.compile_c import CannotCompileError, load_library

logger = logging.getLogger(__name__)

LANES = 16
"""Keys the C code takes at a time; vLLM's CPU block sizes are multiples of it."""

Cache = Float[Tensor, "blocks kv_heads block_size 2*dim"]
Queries = Float[Tensor, "tokens heads dim"]
Rows = Float[Tensor, "rows"]
Lengths = Int[Tensor, "rows"]
Starts = Int[Tensor, "rows_and_1"]


class KeyLayout(IntEnum):
    """How the keys of one block and KV head lie in vLLM 0.24's CPU cache (enum layout in the C)."""

    FLOAT32 = 0
    """[dim, key]."""
    BFLOAT16 = 1
    """[dim, key]."""
    BFLOAT16_PAIRS = 2
    """[key / 16, dim / 2, key % 16, dim % 2]: AMX wants pairs along the dim."""

    @classmethod
    def of(cls, dtype: torch.dtype, isa: str) -> KeyLayout:
        """Layout for a cache of `dtype` written by vLLM's attention kernels for `isa`.

        Raises:
            ValueError: a dtype or instruction set whose layout is not known here.
        """
        if dtype == torch.float32 and isa in ("vec", "vec16"):
            return cls.FLOAT32
        if dtype == torch.bfloat16 and isa in ("vec", "vec16"):
            return cls.BFLOAT16
        if dtype == torch.bfloat16 and isa == "amx":
            return cls.BFLOAT16_PAIRS
        raise ValueError(
            f"visual attention cannot read a KV cache of dtype={dtype} with vLLM's CPU attention "
            f"{isa!r}: use dtype=float32 or bfloat16 on x86, or leave visual attention off"
        )


def visual_ratio(
    query: Queries,
    kv_cache: Cache,
    layout: KeyLayout,
    query_start_loc: Starts,
    seq_lens: Lengths,
    block_table: Int[Tensor, "rows max_blocks"],
    spans: Int[Tensor, "rows max_spans 2"],
    scale: float,
    out: Rows,
    window: int | None = None,
) -> None:
    """Write each row's visual attention ratio (reference.visual_ratio) to `out`.

    Row r's query is token query_start_loc[r + 1] - 1. A row of length 0 gets 0, one with a span
    that starts below 0 gets nan. The integer tensors are int32; `out` is contiguous float32.
    """
    arguments = (query, kv_cache, layout, query_start_loc, seq_lens, block_table, spans, scale)
    if _c_function() is None:
        out.copy_(visual_ratio_torch(*arguments, window=window))
    else:
        _call_c(*arguments, out, window or 0)


def visual_ratio_torch(
    query: Queries,
    kv_cache: Cache,
    layout: KeyLayout,
    query_start_loc: Starts,
    seq_lens: Lengths,
    block_table: Int[Tensor, "rows max_blocks"],
    spans: Int[Tensor, "rows max_spans 2"],
    scale: float,
    window: int | None = None,
) -> Rows:
    """The same without a compiler, by gathering every key of every row: slower."""
    blocks, kv_heads, block_size, twice_dim = kv_cache.shape
    context = int(seq_lens.max())
    used = block_table[:, : -(-context // block_size)].long()
    raw = kv_cache.view(blocks, kv_heads, 2, -1)[used, :, 0]  # [rows, n, kv_heads, block * dim]
    keys = _unpack_keys(raw, layout, block_size, twice_dim // 2)  # [rows, n, kv_heads, dim, block]
    keys = keys.permute(0, 2, 1, 4, 3).flatten(2, 3)[:, :, :context]
    last = (query_start_loc[1:] - 1).long()
    visual = reference.visual_mask(spans, context)
    ratio = reference.visual_ratio(query[last], keys, visual, seq_lens, scale, window)
    marked = (spans[:, :, 0] < 0).any(1) & (seq_lens > 0)
    return ratio.masked_fill(marked, float("nan"))


def _unpack_keys(raw: Tensor, layout: KeyLayout, block_size: int, dim: int) -> Tensor:
    """[..., block_size * dim] as it lies in the cache -> [..., dim, block_size]."""
    if layout is not KeyLayout.BFLOAT16_PAIRS:
        return raw.unflatten(-1, (dim, block_size))
    tiles = raw.unflatten(-1, (block_size // LANES, dim // 2, LANES, 2))
    order = [*range(tiles.ndim - 4), -3, -1, -4, -2]
    return tiles.permute(order).flatten(-4, -3).flatten(-2, -1)


class _Arguments(ctypes.Structure):
    """struct visual_ratio_args of the C source, field by field."""

    _fields_ = (
        ("query", ctypes.c_void_p),
        ("query_token_stride", ctypes.c_int64),
        ("query_head_stride", ctypes.c_int64),
        ("key", ctypes.c_void_p),
        ("key_block_stride", ctypes.c_int64),
        ("key_head_stride", ctypes.c_int64),
        ("block_table", ctypes.c_void_p),
        ("block_table_stride", ctypes.c_int64),
        ("seq_lens", ctypes.c_void_p),
        ("query_start_loc", ctypes.c_void_p),
        ("spans", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("rows", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("dim", ctypes.c_int32),
        ("block_size", ctypes.c_int32),
        ("max_spans", ctypes.c_int32),
        ("layout", ctypes.c_int32),
        ("window", ctypes.c_int32),
    )


@functools.cache
def _c_function() -> Callable[[Any], int] | None:
    try:
        function = load_library(Path(__file__).with_name("visual_ratio.c")).visual_ratio
    except CannotCompileError as e:
        logger.warning("Visual attention is recorded by PyTorch, some 20 times slower: %s", e)
        return None
    function.argtypes, function.restype = [ctypes.POINTER(_Arguments)], ctypes.c_int
    return function


def _call_c(
    query: Tensor,
    kv_cache: Tensor,
    layout: KeyLayout,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    spans: Tensor,
    scale: float,
    out: Tensor,
    window: int,
) -> None:
    _, kv_heads, block_size, twice_dim = kv_cache.shape
    integers = (query_start_loc, seq_lens, block_table, spans)
    assert all(x.dtype == torch.int32 and x.stride(-1) == 1 for x in integers)
    assert query.stride(2) == 1 and query.dtype == kv_cache.dtype and kv_cache.stride(3) == 1
    assert kv_cache.stride(2) == twice_dim and spans.is_contiguous() and out.is_contiguous()
    assert out.dtype == torch.float32 and block_size % LANES == 0
    arguments = _Arguments(
        query=query.data_ptr(),
        query_token_stride=query.stride(0),
        query_head_stride=query.stride(1),
        key=kv_cache.data_ptr(),
        key_block_stride=kv_cache.stride(0),
        key_head_stride=kv_cache.stride(1),
        block_table=block_table.data_ptr(),
        block_table_stride=block_table.stride(0),
        seq_lens=seq_lens.data_ptr(),
        query_start_loc=query_start_loc.data_ptr(),
        spans=spans.data_ptr(),
        out=out.data_ptr(),
        scale=scale,
        rows=seq_lens.shape[0],
        heads=query.shape[1],
        kv_heads=kv_heads,
        dim=twice_dim // 2,
        block_size=block_size,
        max_spans=spans.shape[1],
        layout=layout,
        window=window,
    )
    function = _c_function()
    assert function is not None
    if function(ctypes.byref(arguments)) != 0:
        raise MemoryError("no memory for the scores of the visual attention ratio")
