"""Stage `kernels`: the Triton kernels against the reference in float64.

Every geometry is compiled for its own, so the cases run in several processes. Without CUDA they run
in Triton's interpreter, a few of them.
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

from vapo_verl.gpu_check.case import CaseSkipped, Check, require
from vapo_verl.gpu_check.paged_batch import PagedBatch
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What a case is about; the batches have rows of all kinds, see paged_batch.py."""

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
        CaseFailed: a ratio is off by more than `TOLERANCE`, or something else does not hold.
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
        CaseFailed: it wrote behind the batch's rows.
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
