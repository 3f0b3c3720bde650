"""Stage `kernels`: the Triton kernels against the reference in float64.

Every geometry is compiled separately, so the cases run in several processes. Without CUDA, a few of
them run in Triton's interpreter.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as NotDone
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vapo_verl.attention import reference
from vapo_verl.attention.kernels import kv_views, layout_of
from vapo_verl.gpu_check.case import CaseSkipped, Check, require
from vapo_verl.gpu_check.results import Figure, significant

TOLERANCE = 1e-5
"""Absolute. Inputs are upcast without loss, and products of 16-bit floats are exact in float32."""
GROUPS = {4: (8, 2), 7: (28, 4)}
"""Query heads per KV head -> (heads, kv_heads)."""
LAYOUTS = (("NHD", 16), ("HND", 32), ("packed", 48))
"""Layout of the cache, and a block size to go with it."""
WINDOWS = (None, 40)
MAX_WORKERS = 8

Ratio = Callable[..., Tensor]
"""Called as `kernel_ratio`: the ratios of a batch's rows."""
NAN = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The parameters of a case; the batches have rows of all kinds, see :class:`PagedBatch`."""

    kind: str
    """``agreement``, ``splits`` or ``graph``."""
    dtype: str
    dim: int
    with_lse: bool
    device: str

    @property
    def name(self) -> str:
        way = "visual keys" if self.with_lse else "full context"
        return f"{self.kind}, {self.dtype}, head size {self.dim}, {way}"


def geometries(device: str) -> Iterator[Geometry]:
    """The cases, the most informative first."""
    on_gpu = device == "cuda"
    dtypes = ("bfloat16", "float32", "float16") if on_gpu else ("bfloat16", "float32")
    dims = (128, 64, 80) if on_gpu else (64,)
    for kind in ("agreement", "graph", "splits") if on_gpu else ("agreement", "splits"):
        every = itertools.product(dtypes, dims) if kind == "agreement" else [("bfloat16", 64)]
        for (dtype, dim), with_lse in itertools.product(every, (True, False)):
            yield Geometry(kind=kind, dtype=dtype, dim=dim, with_lse=with_lse, device=device)


def run(check: Check) -> None:
    workers = min(MAX_WORKERS, len(os.sched_getaffinity(0)))
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_prepare,
        initargs=(check.device,),
    )
    futures = {case: pool.submit(measure, case) for case in geometries(check.device)}
    for case, future in futures.items():
        check.case(case.name, partial(_outcome, check, future))
    pool.shutdown(wait=False, cancel_futures=True)


def _outcome(check: Check, future: Future[dict[str, Figure]]) -> Mapping[str, Figure]:
    try:
        return future.result(timeout=max(check.seconds_left, 0.1))
    except NotDone:
        if future.running():
            raise
        raise CaseSkipped("no time left") from None


def _prepare(device: str) -> None:
    """Triton chooses between compiler and interpreter when it is imported."""
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"


def measure(case: Geometry, ratio: Ratio | None = None) -> dict[str, Figure]:
    """Run one case in this process.

    Args:
        ratio: computes the ratios that are checked; `kernel_ratio` unless given.

    Raises:
        CaseFailed: a ratio is off by more than `TOLERANCE`, or another requirement fails.
    """
    run_kind = {"agreement": agreement, "graph": graph, "splits": splits}[case.kind]
    return run_kind(case, ratio or kernel_ratio)


def agreement(case: Geometry, ratio: Ratio) -> dict[str, Figure]:
    """GQA groups, layouts, block sizes and windows; odd spans, padded and marked rows in each."""
    worst, number = 0.0, 0
    for heads, kv_heads in GROUPS.values():
        for (layout, block_size), window in itertools.product(LAYOUTS, WINDOWS):
            batch = _batch(
                case, heads=heads, kv_heads=kv_heads, layout=layout, block_size=block_size
            )
            got, expected = ratio(batch, case, window), batch.expected(window)
            where = f"{heads} heads, {kv_heads} KV heads, {layout}, window {window}"
            worst = max(worst, _error(got, expected, where))
            shifted = _error_of_shifted_spans(batch, got, window)
            require(
                shifted > 10 * TOLERANCE, f"{where}: a shift of the spans by one is not noticed"
            )
            number += 1
    return {"combinations": number, "largest_error": significant(worst)}


def splits(case: Geometry, ratio: Ratio) -> dict[str, Figure]:
    """A long row shared by many programs; repeated, it gives the same bits."""
    heads, kv_heads = GROUPS[7]
    short = case.device == "cpu"
    batch = _batch(
        case,
        heads=heads,
        kv_heads=kv_heads,
        queries=(1,),
        context=(500,) if short else (5000,),
        spans_of_rows=(((13, 205), (208, 210), (301, 477)),)
        if short
        else (((13, 2051), (2058, 2060), (3001, 4777)),),
    )
    expected, worst = batch.expected(), 0.0
    for number in (None, 1, 5, 32):
        first = ratio(batch, case, num_splits=number)
        worst = max(worst, _error(first, expected, f"num_splits={number}"))
        again = ratio(batch, case, num_splits=number)
        require(torch.equal(first, again), f"num_splits={number}: a rerun gives other bits")
    return {"largest_error": significant(worst)}


def graph(case: Geometry, ratio: Ratio) -> dict[str, Figure]:
    """A captured CUDA graph follows its inputs: other rows, blocks and spans of the same shapes."""
    from vapo_verl.attention.kernels.cuda import visual_ratio

    for heads, kv_heads in GROUPS.values():
        shape = {"heads": heads, "kv_heads": kv_heads, "num_blocks": 30}
        captured, same = _batch(case, **shape), _batch(case, **shape)
        other = _batch(
            case,
            **shape,
            seed=1,
            queries=(1, 5, 1, 1, 1, 1, 0, 0),
            context=(100, 33, 12, 61, 50, 7, 0, 0),
            spans_of_rows=(
                ((0, 99),),
                ((-1, -1),),
                ((3, 7), (8, 9)),
                (),
                ((1, 2),),
                ((0, 8),),
                (),
                (),
            ),
        )
        eager = [ratio(batch, case) for batch in (other, same)]  # compiles before the capture
        lse = captured.lse() if case.with_lse else None
        out = torch.zeros(captured.rows, device=case.device)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            visual_ratio(*captured.arguments, out, lse=lse)
        for batch, expected in zip((other, same), eager, strict=True):
            fresh_lse = batch.lse() if case.with_lse else None
            inputs = ("query", "key_cache", "query_start_loc", "seq_lens", "block_table", "spans")
            for name in inputs:
                getattr(captured, name).copy_(getattr(batch, name))
            if lse is not None and fresh_lse is not None:
                lse.copy_(fresh_lse)
            out.fill_(7.0)
            recorded.replay()
            alike = torch.equal(out.nan_to_num(-1.0), expected.nan_to_num(-1.0))
            require(alike, f"{heads} heads: the graph's ratios are not those outside of a graph")
    return {"gqa_groups": len(GROUPS)}


def _batch(case: Geometry, **shape: Any) -> PagedBatch:
    return PagedBatch(**shape, dim=case.dim, dtype=getattr(torch, case.dtype), device=case.device)


def kernel_ratio(
    batch: PagedBatch, case: Geometry, window: int | None = None, num_splits: int | None = None
) -> Tensor:
    """The Triton kernel's ratios of a batch.

    Raises:
        CaseFailed: it wrote beyond the batch's rows.
    """
    from vapo_verl.attention.kernels.cuda import visual_ratio  # after `_prepare`

    out = torch.full((batch.rows + 2,), 7.0, device=case.device)
    lse = batch.lse(window) if case.with_lse else None
    visual_ratio(*batch.arguments, out, lse=lse, window=window, num_splits=num_splits)
    require(bool((out[batch.rows :] == 7).all()), "it wrote behind the batch's rows")
    return out[: batch.rows]


def _error(got: Tensor, expected: Tensor, where: str) -> float:
    """Largest absolute error; nan must be where it is expected."""
    require(
        bool((got.isnan() == expected.isnan()).all()), f"{where}: nan in other rows than expected"
    )
    error = _largest_difference(got, expected)
    require(error <= TOLERANCE, f"{where}: off by {error:.1e}, {TOLERANCE:.0e} is allowed")
    return error


def _error_of_shifted_spans(batch: PagedBatch, got: Tensor, window: int | None) -> float:
    """How far the ratios are from those of spans that begin one key later."""
    kept = batch.spans.clone()
    first = batch.spans[:, 0, 0]
    batch.spans[:, 0, 0] = first + (first >= 0)
    expected = batch.expected(window)
    batch.spans.copy_(kept)
    return _largest_difference(got, expected)


def _largest_difference(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().nan_to_num(0.0).max().item()


@dataclass(kw_only=True)
class PagedBatch:
    """Rows over a paged cache; row i has `queries[i]` queries after `context[i]` older keys."""

    heads: int = 4
    kv_heads: int = 2
    dim: int = 32
    block_size: int = 16
    layout: str = "NHD"
    """NHD or HND: strides of `CacheLayout.BLOCKS_FIRST`; packed: `CacheLayout.PACKED`."""
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    queries: tuple[int, ...] = (1, 1, 1, 5, 1, 1, 0, 0)
    context: tuple[int, ...] = (100, 37, 64, 20, 3, 50, 0, 0)
    spans_of_rows: tuple[tuple[tuple[int, int], ...], ...] = (
        ((5, 70),),  # unaligned, over several blocks
        ((0, 0), (11, 30), (0, 0), (3, 9)),  # two images, in any order, with gaps
        (),  # text only
        ((2, 21), (23, 200)),  # ends beyond the present chunk
        ((0, 2),),
        ((-1, -1),),  # cannot be captured
        ((0, 5),),  # padded row with what an older batch left
        ((-1, -1),),
    )
    max_spans: int = 5
    num_blocks: int = 0
    """At least this many in the cache."""
    seed: int = 0

    def __post_init__(self) -> None:
        rng = torch.Generator().manual_seed(self.seed)
        lens = [c + n for c, n in zip(self.context, self.queries, strict=True)]
        per_row = [-(-n // self.block_size) for n in lens]
        num_blocks = max(sum(per_row) + 3, self.num_blocks)
        key_cache = self._empty_cache(num_blocks)
        free = torch.randperm(num_blocks, generator=rng).tolist()
        # one row and two columns more than needed, with block numbers that do not exist
        table = torch.full((len(lens) + 1, max(per_row) + 2), 10**6, dtype=torch.int32)
        keys = torch.zeros(len(lens), self.kv_heads, max(lens), self.dim, dtype=self.dtype)
        for row, n in enumerate(lens):
            key = (2 * torch.randn(n, self.kv_heads, self.dim, generator=rng)).to(self.dtype)
            keys[row, :, :n] = key.transpose(0, 1)
            for i, chunk in enumerate(key.split(self.block_size)):
                block = free.pop()
                table[row, i] = block
                key_cache[block, : len(chunk)] = chunk.to(self.device)
        tokens = sum(self.queries)
        query = torch.full((tokens + 3, self.heads, self.dim), NAN, dtype=self.dtype)
        query[:tokens] = torch.randn(tokens, self.heads, self.dim, generator=rng)
        spans = torch.zeros(len(lens) + 1, self.max_spans, 2, dtype=torch.int32)
        for row, of_row in enumerate(self.spans_of_rows):
            for i, span in enumerate(of_row):
                spans[row, i] = torch.tensor(span)
        starts = torch.tensor([0, *itertools.accumulate(self.queries)], dtype=torch.int32)
        self.scale = self.dim**-0.5
        self.keys, self.query = keys.to(self.device), query.to(self.device)
        self.key_cache, self.block_table = key_cache, table.to(self.device)
        self.query_start_loc, self.spans = starts.to(self.device), spans.to(self.device)
        self.seq_lens = torch.tensor(lens, dtype=torch.int32, device=self.device)

    def _empty_cache(self, num_blocks: int) -> Tensor:
        sizes = {
            "NHD": (2, self.block_size, self.kv_heads, self.dim),
            "HND": (2, self.kv_heads, self.block_size, self.dim),
            "packed": (self.kv_heads, self.block_size, 2 * self.dim),
        }
        cache = torch.full((num_blocks, *sizes[self.layout]), NAN, dtype=self.dtype)
        cache = cache.to(self.device)
        self.kv_cache = cache.transpose(2, 3) if self.layout == "HND" else cache
        layout = layout_of(self.kv_cache, self.kv_heads, self.dim)
        return kv_views(self.kv_cache, layout).key

    @property
    def rows(self) -> int:
        return len(self.seq_lens)

    @property
    def last_query(self) -> Tensor:
        return self.query[(self.query_start_loc[1:] - 1).long()]

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float]:
        """Of the kernels' `visual_ratio`, up to the scale."""
        rows = (self.query_start_loc, self.seq_lens, self.block_table, self.spans)
        return self.query, self.key_cache, *rows, self.scale

    def expected(self, window: int | None = None) -> Tensor:
        """The reference in float64, and nan for rows that are marked."""
        spans = self.spans[: self.rows]
        visual = reference.visual_mask(spans, self.keys.shape[2])
        ratio = reference.visual_ratio(
            self.last_query.double(), self.keys.double(), visual, self.seq_lens, self.scale, window
        )
        marked = (spans < 0).flatten(1).any(1) & (self.seq_lens > 0)
        return ratio.masked_fill(marked, NAN).float()

    def lse(self, window: int | None = None) -> Tensor:
        """[heads, tokens] as FlashAttention gives it; only the last query of each row is filled."""
        group = self.heads // self.kv_heads
        keys = self.keys.double().repeat_interleave(group, 1)
        logits = self.scale * (self.last_query.double()[:, :, None] * keys).sum(-1)
        position = torch.arange(keys.shape[2], device=self.device)
        seq_lens = self.seq_lens[:, None]
        reachable = (position < seq_lens) & (position >= seq_lens - (window or 10**6))
        of_rows = logits.masked_fill(~reachable[:, None], float("-inf")).logsumexp(-1)
        lse = torch.full((self.heads, len(self.query) - 1), NAN, device=self.device)
        for row in (self.seq_lens > 0).nonzero()[:, 0].tolist():
            lse[:, int(self.query_start_loc[row + 1]) - 1] = of_rows[row].float()
        return lse
