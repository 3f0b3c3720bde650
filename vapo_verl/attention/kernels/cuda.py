"""The visual attention ratio over a paged KV cache on CUDA, in Triton.

One program reads some keys of one row for the query heads of one KV head; a second kernel adds up
the programs' parts and averages over heads, so that no atomics are needed and the result is
deterministic. The grid depends on shapes alone, and all that changes from step to step lies in
device memory: a CUDA graph may capture both launches.
"""

from __future__ import annotations

from functools import cache
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32, Int32
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
TILE = 64
"""Keys that a program reads at a time."""
MAX_SPLITS = 32
"""The most programs that share a row's keys."""
PROGRAMS_PER_MULTIPROCESSOR = 4
"""The limit of registers and shared memory at head size 128 in 16 bits."""
NO_WINDOW = 2**31 - 1
INTERPRETED = triton.knobs.runtime.interpret

# no_type_check: jaxtyping's import hook must not wrap functions that Triton compiles from source.


@no_type_check
@triton.jit
def _logits(
    query, keys, table, position, inside, stride_block, stride_slot, scale,
    DIM: tl.constexpr, DIM_PAD: tl.constexpr, BLOCK_SIZE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """log2(e) * scale * q . k of [group, positions], at positions that lie `inside`."""
    block = tl.load(table + position // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
    start = keys + block * stride_block + (position % BLOCK_SIZE) * stride_slot
    dim = tl.arange(0, DIM_PAD)
    mask = inside[None, :] & (dim < DIM)[:, None]
    key = tl.load(start[None, :] + dim[:, None], mask=mask, other=0.0)
    if UPCAST:
        query = query.to(tl.float32)
        key = key.to(tl.float32)
    return tl.dot(query, key, input_precision="ieee") * (scale * LOG2E)


@no_type_check
@triton.jit(do_not_specialize=["stride_lse_head", "stride_lse_token"])
def walk_kernel(
    query_ptr, key_ptr, starts_ptr, seq_lens_ptr, table_ptr, spans_ptr, lse_ptr, parts_ptr,
    scale, window, stride_token, stride_head, stride_block, stride_slot, stride_kv_head,
    stride_table, stride_lse_head, stride_lse_token,
    GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, MAX_SPANS: tl.constexpr, SPANS_PAD: tl.constexpr,
    WITH_LSE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Program (row, KV head, split) -> its sums for each head, in parts [n, rows, heads, splits].

    With LSE n = 1, the visual probability mass; without n = 3, the sums of visual and of all
    weights and the running maximum of the logits that both are relative to, as in FlashAttention.
    Splits take the tiles in turn, so that all have work at any row length.
    """
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    num_splits = tl.num_programs(2)
    seq_len = tl.load(seq_lens_ptr + row)
    if seq_len == 0:
        return
    token = tl.load(starts_ptr + row + 1).to(tl.int64) - 1
    member = tl.arange(0, GROUP_PAD)
    head = kv_head * GROUP + member
    dim = tl.arange(0, DIM_PAD)
    query = tl.load(
        query_ptr + token * stride_token + head[:, None] * stride_head + dim[None, :],
        mask=(member < GROUP)[:, None] & (dim < DIM)[None, :],
        other=0.0,
    )
    keys = key_ptr + kv_head * stride_kv_head
    table = table_ptr + row * stride_table
    first = tl.maximum(seq_len - window, 0)

    spans = spans_ptr + row * MAX_SPANS * 2
    index = tl.arange(0, SPANS_PAD)
    lower = tl.load(spans + 2 * index, mask=index < MAX_SPANS, other=0)
    upper = tl.load(spans + 2 * index + 1, mask=index < MAX_SPANS, other=0)
    num_spans = tl.max(tl.where(upper > lower, index + 1, 0), 0)  # empty ones follow: skipped

    heads = tl.num_programs(1) * GROUP
    part = parts_ptr + (row * heads + head) * num_splits + split
    visual = tl.zeros([GROUP_PAD], tl.float32)
    if WITH_LSE:
        of_token = lse_ptr + head * stride_lse_head + token * stride_lse_token
        lse = tl.load(of_token, mask=member < GROUP, other=0.0) * LOG2E
        for s in range(num_spans):
            start = tl.maximum(tl.load(spans + 2 * s), first)
            end = tl.minimum(tl.load(spans + 2 * s + 1), seq_len)
            # each span starts at another split, or the first would do all short ones
            for tile in range(start + (split + s) % num_splits * TILE, end, num_splits * TILE):
                position = tile + tl.arange(0, TILE)
                inside = position < end
                logits = _logits(
                    query, keys, table, position, inside, stride_block, stride_slot, scale,
                    DIM, DIM_PAD, BLOCK_SIZE, UPCAST,
                )  # fmt: skip
                # LSE >= every logit: the power is at most 1, no running maximum is needed
                mass = tl.exp2(logits - lse[:, None])
                visual += tl.sum(tl.where(inside[None, :], mass, 0.0), 1)
        # FlashAttention 2 can write inf into the LSE of another row (Dao-AILab/flash-attention
        # issue 2842): such a row is missing, not without attention on images
        is_known = (tl.abs(lse) < float("inf")) | (seq_len == 0)
        tl.store(part, tl.where(is_known, visual, float("nan")), mask=member < GROUP)
    else:
        peak = tl.full([GROUP_PAD], float("-inf"), tl.float32)
        total = tl.zeros([GROUP_PAD], tl.float32)
        for tile in range(first + split * TILE, seq_len, num_splits * TILE):
            position = tile + tl.arange(0, TILE)
            inside = position < seq_len
            # all spans at once: Triton does not pipeline the loads of a loop that holds a loop
            seen = (position[None, :] >= lower[:, None]) & (position[None, :] < upper[:, None])
            seen = tl.max(seen.to(tl.int32), 0) > 0
            logits = _logits(
                query, keys, table, position, inside, stride_block, stride_slot, scale,
                DIM, DIM_PAD, BLOCK_SIZE, UPCAST,
            )  # fmt: skip
            logits = tl.where(inside[None, :], logits, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(logits, 1))  # finite: a tile begins inside
            rescale = tl.exp2(peak - new_peak)
            weight = tl.exp2(logits - new_peak[:, None])
            total = total * rescale + tl.sum(weight, 1)
            visual = visual * rescale + tl.sum(tl.where(seen[None, :], weight, 0.0), 1)
            peak = new_peak
        size = tl.num_programs(0).to(tl.int64) * heads * num_splits
        tl.store(part, visual, mask=member < GROUP)
        tl.store(part + size, total, mask=member < GROUP)
        tl.store(part + 2 * size, peak, mask=member < GROUP)


@no_type_check
@triton.jit(do_not_specialize=["num_splits"], do_not_specialize_on_alignment=["out_ptr"])
def mean_kernel(
    parts_ptr, seq_lens_ptr, spans_ptr, out_ptr, num_splits,
    HEADS: tl.constexpr, HEADS_PAD: tl.constexpr, SPLITS_PAD: tl.constexpr,
    MAX_SPANS: tl.constexpr, SPANS_PAD: tl.constexpr, WITH_LSE: tl.constexpr,
):  # fmt: skip
    """Program (row) -> out[row]: add up the parts of the splits and average over heads."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(seq_lens_ptr + row) == 0:  # its parts were never written
        tl.store(out_ptr + row, 0.0)
        return
    head = tl.arange(0, HEADS_PAD)
    split = tl.arange(0, SPLITS_PAD)
    part = parts_ptr + (row * HEADS + head[:, None]) * num_splits + split[None, :]
    mask = (head < HEADS)[:, None] & (split < num_splits)[None, :]
    visual = tl.load(part, mask=mask, other=0.0)
    if WITH_LSE:
        fraction = tl.sum(visual, 1)
    else:
        size = tl.num_programs(0).to(tl.int64) * HEADS * num_splits
        total = tl.load(part + size, mask=mask, other=0.0)
        peak = tl.load(part + 2 * size, mask=mask, other=float("-inf"))
        weight = tl.exp2(peak - tl.max(peak, 1)[:, None])  # 0 for a split that had no tile
        fraction = tl.sum(visual * weight, 1) / tl.sum(total * weight, 1)
    ratio = tl.sum(tl.where(head < HEADS, fraction, 0.0), 0) / HEADS
    index = tl.arange(0, SPANS_PAD)
    lower = tl.load(spans_ptr + (row * MAX_SPANS + index) * 2, mask=index < MAX_SPANS, other=0)
    tl.store(out_ptr + row, tl.where(tl.min(lower, 0) < 0, float("nan"), ratio))


def visual_ratio(
    query: Float[Tensor, "tokens heads dim"],
    key_cache: Float[Tensor, "blocks block_size kv_heads dim"],
    query_start_loc: Int32[Tensor, " starts"],
    seq_lens: Int32[Tensor, " rows"],
    block_table: Int32[Tensor, "table_rows max_blocks"],
    spans: Int32[Tensor, "span_rows max_spans 2"],
    scale: float,
    out: Float32[Tensor, " out_rows"],
    *,
    lse: Float32[Tensor, "heads lse_tokens"] | None = None,
    window: int | None = None,
    num_splits: int | None = None,
) -> None:
    """Write to out[r] the fraction of attention that row r's last query puts on visual keys.

    As `reference.visual_ratio`: ratio_r = 1/H * sum_h sum_{j visual} softmax_j(scale * q_rh . k_rj)
    over the keys j < seq_lens[r], the last `window` of them where a window is given. Row r's query
    is number query_start_loc[r + 1] - 1. Two methods:

    with `lse`: only visual keys are read; the mass of a head is sum_{visual} exp(logit - LSE).
    without: the full context is read once, and the attention kernel provides nothing.

    Nothing is read back to the host, and reruns give the same bits.

    Args:
        query: float32, bfloat16 or float16, padded at the end; unit stride in dim, as the keys.
        key_cache: of the queries' dtype, in any layout (a strided view of a KV cache).
        seq_lens: a row of length 0 is padding and gets 0.
        spans: disjoint half-open key ranges [start, end), unaligned, in any order; (0, 0) is none.
            What lies beyond seq_lens does not count. A negative start marks a row that cannot be
            captured: its ratio is nan.
        out: entries behind `rows` are left alone, as spare rows of the other arguments.
        lse: natural-log sum of exp of all the query's logits, FlashAttention's softmax_lse, with
            any strides: for one KV head FlashAttention 2 returns it transposed.
        num_splits: programs that share a row and KV head (at most 32); chosen from shapes if None.
    """
    rows, heads, dim = seq_lens.shape[0], *query.shape[1:]
    block_size, kv_heads = key_cache.shape[1:3]
    max_spans = spans.shape[1]
    if rows == 0:
        return
    _check(query, key_cache, query_start_loc, seq_lens, block_table, spans, out, lse)
    assert window is None or window > 0, f"window={window}"
    if num_splits is None:
        num_splits = _num_splits(rows * kv_heads, query.device)
    assert 0 < num_splits <= MAX_SPLITS, f"num_splits={num_splits}"
    # in a CUDA graph this comes from the graph's own pool
    parts = query.new_empty((1 if lse is not None else 3, rows, heads, num_splits), dtype=out.dtype)
    spans_pad = triton.next_power_of_2(max_spans)
    walk_kernel[(rows, kv_heads, num_splits)](
        query,
        key_cache,
        query_start_loc,
        seq_lens,
        block_table,
        spans,
        parts if lse is None else lse,
        parts,
        scale,
        NO_WINDOW if window is None else window,
        *query.stride()[:2],
        *key_cache.stride()[:3],
        block_table.stride(0),
        *((0, 0) if lse is None else lse.stride()),
        GROUP=heads // kv_heads,
        GROUP_PAD=max(16, triton.next_power_of_2(heads // kv_heads)),  # tl.dot's least
        DIM=dim,
        DIM_PAD=max(16, triton.next_power_of_2(dim)),
        BLOCK_SIZE=block_size,
        TILE=TILE,
        MAX_SPANS=max_spans,
        SPANS_PAD=spans_pad,
        WITH_LSE=lse is not None,
        # Triton 3.6's interpreter multiplies the raw bits of bfloat16 in tl.dot
        UPCAST=INTERPRETED and query.dtype == torch.bfloat16,
        **launch_options(TILE * dim * query.element_size()),
    )
    mean_kernel[(rows,)](
        parts,
        seq_lens,
        spans,
        out,
        num_splits,
        HEADS=heads,
        HEADS_PAD=triton.next_power_of_2(heads),
        SPLITS_PAD=MAX_SPLITS,
        MAX_SPANS=max_spans,
        SPANS_PAD=spans_pad,
        WITH_LSE=lse is not None,
    )


def _check(
    query: Tensor,
    key_cache: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    spans: Tensor,
    out: Tensor,
    lse: Tensor | None,
) -> None:
    """Assert what the kernels rely on: otherwise they would silently read other memory."""
    rows, heads, dim, kv_heads = seq_lens.shape[0], *query.shape[1:], key_cache.shape[2]
    assert query.dtype in (torch.float32, torch.bfloat16, torch.float16), f"query: {query.dtype}"
    assert key_cache.dtype == query.dtype, f"keys {key_cache.dtype}, queries {query.dtype}"
    assert key_cache.shape[3] == dim, f"head size {key_cache.shape[3]} of keys, {dim} of queries"
    assert heads % kv_heads == 0, f"{heads} heads do not share {kv_heads} KV heads evenly"
    assert query.stride(2) == 1, f"query must have unit stride in dim: {query.stride()}"
    assert key_cache.stride(3) == 1, f"keys must have unit stride in dim: {key_cache.stride()}"
    assert block_table.stride(1) == 1, f"block_table must be dense: {block_table.stride()}"
    for name, array, least in (
        ("query_start_loc", query_start_loc, rows + 1),
        ("seq_lens", seq_lens, rows),
        ("block_table", block_table, rows),
        ("spans", spans, rows),
    ):
        assert array.dtype == torch.int32, f"{name} must be int32: {array.dtype}"
        assert array.shape[0] >= least, f"{name} has {array.shape[0]} entries, {least} needed"
        assert name == "block_table" or array.is_contiguous(), f"{name} must be contiguous"
    assert out.dtype == torch.float32 and out.shape[0] >= rows and out.is_contiguous(), (
        f"out must be contiguous float32 of at least {rows}: {out.dtype} {tuple(out.shape)}"
    )
    if lse is not None:
        assert lse.dtype == torch.float32 and lse.ndim == 2 and lse.shape[0] == heads, (
            f"lse must be float32 [{heads}, tokens]: {lse.dtype} {tuple(lse.shape)}"
        )


def launch_options(tile_bytes: int) -> dict[str, int]:
    """Warps and pipeline stages that keep 32 KiB in flight without spilling registers.

    With 5 stages two tiles load while one is worked on, with 3 one does: a tile's block numbers
    come first, and take stages of their own.
    """
    if tile_bytes <= 16 * 1024:
        return {"num_warps": 4, "num_stages": 5}
    return {"num_warps": 8, "num_stages": 3}


def _num_splits(programs: int, device: torch.device) -> int:
    """Splits that fill the device; from shapes alone, since a CUDA graph's grid is fixed."""
    wanted = PROGRAMS_PER_MULTIPROCESSOR * _multiprocessors(device)
    return min(MAX_SPLITS, triton.next_power_of_2(-(-wanted // programs)))


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":  # the interpreter
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
