"""Time of the visual attention kernels on a GPU, at the shapes of Qwen2.5-VL-7B's decode.

    python benchmarks/attention_kernel.py [--rounds 50]

Needs a CUDA GPU, torch, triton and jaxtyping, not vLLM. Every way runs in a CUDA graph over several
layers' caches, so that none finds its keys in the L2 cache; rounds of the ways are interleaved and
medians reported. Ideal is to read the keys once, at the bandwidth of a copy; the decode step is an
estimate too: its weights, keys and values at that bandwidth. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare machine has no install

from vapo_verl.attention import reference
from vapo_verl.attention.kernels.cuda import visual_ratio

HEADS, KV_HEADS, DIM, LAYERS = 28, 4, 128, 28
CAPTURED_BY_DEFAULT = 4
WEIGHTS_GB = 7.07 * 2
"""Read in a decode step: the language model without its input embedding, bfloat16."""
CONTEXT, BLOCK_SIZE = 1700, 16
SPAN = (21, 1045)
"""1024 image tokens, unaligned."""
MAX_SPANS = 32
CACHES_GB = 0.5
"""Of all layers of a graph together, at least: well above any L2 cache."""
BATCH_SIZES = (1, 32, 128)
DTYPE = torch.bfloat16
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One decode step's rows: what all layers share."""

    query_start_loc: Tensor
    seq_lens: Tensor
    block_table: Tensor
    spans: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    query: Tensor
    kv_cache: Tensor
    """[blocks, 2, block_size, kv_heads, dim] as vLLM's FLASH_ATTN."""
    lse: Tensor
    out: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("attention_kernel.py needs a CUDA GPU: torch.cuda.is_available() is False")
    torch.manual_seed(0)
    copy_gb_s = copy_bandwidth()
    gpu = torch.cuda.get_device_name()
    print(f"{gpu}: copies {copy_gb_s:.0f} GB/s; us a layer, median of {arguments.rounds} rounds")
    print("batch    way       us  x faster  x ideal   % of step: 4 layers   all")
    results = [
        result for batch in BATCH_SIZES for result in measure(batch, arguments.rounds, copy_gb_s)
    ]
    print(json.dumps({"gpu": gpu, "copy_gb_s": round(copy_gb_s), "results": results}))


def measure(batch: int, rounds: int, copy_gb_s: float) -> list[dict[str, float | int | str]]:
    rows, layers = decode_step(batch)
    ways: dict[str, Callable[[Layer], object]] = {
        "lse": lambda layer: fused(rows, layer, layer.lse),
        "full": lambda layer: fused(rows, layer, None),
        "naive": lambda layer: layer.out.copy_(naive(rows, layer)),
    }
    expected = naive(rows, layers[0])
    for name in ("lse", "full"):
        ways[name](layers[0])
        error = (layers[0].out - expected).abs().max().item()
        if not error < TOLERANCE:
            raise SystemExit(f"batch {batch}, {name}: off by {error:.1e} from the reference")
    graphs = {name: graph_of(way, layers) for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, graph in graphs.items():
            times[name].append(replay_us(graph) / len(layers))
    taken = {name: median(values) for name, values in times.items()}
    read = {"lse": SPAN[1] - SPAN[0], "full": CONTEXT, "naive": CONTEXT}
    key_gb = batch * KV_HEADS * DIM * DTYPE.itemsize / 1e9
    step_us = (WEIGHTS_GB + 2 * LAYERS * CONTEXT * key_gb) / copy_gb_s * 1e6
    results: list[dict[str, float | int | str]] = []
    for name, us in taken.items():
        ideal = read[name] * key_gb / copy_gb_s * 1e6
        share = 100 * us / step_us
        faster = taken["naive"] / us
        print(
            f"{batch:5} {name:>6} {us:8.1f} {faster:9.1f} {us / ideal:8.2f} "
            f"{CAPTURED_BY_DEFAULT * share:21.2f} {LAYERS * share:5.1f}"
        )
        results.append(
            {
                "batch": batch,
                "way": name,
                "us_per_layer": round(us, 2),
                "times_faster_than_naive": round(faster, 2),
                "times_ideal": round(us / ideal, 3),
                "percent_of_step_per_layer": round(share, 3),
            }
        )
    return results


def decode_step(batch: int) -> tuple[Rows, list[Layer]]:
    per_row = -(-CONTEXT // BLOCK_SIZE)
    int32 = {"dtype": torch.int32, "device": "cuda"}
    table = torch.randperm(batch * per_row, device="cuda").int().view(batch, per_row)
    spans = torch.zeros(batch, MAX_SPANS, 2, **int32)
    spans[:, 0] = torch.tensor(SPAN)
    rows = Rows(
        query_start_loc=torch.arange(batch + 1, **int32),
        seq_lens=torch.full((batch,), CONTEXT, **int32),
        block_table=table,
        spans=spans,
    )
    layers = []
    shape = (batch * per_row, 2, BLOCK_SIZE, KV_HEADS, DIM)
    layer_gb = math.prod(shape) * DTYPE.itemsize / 1e9
    for _ in range(max(4, math.ceil(CACHES_GB / layer_gb))):
        kv_cache = torch.randn(shape, dtype=DTYPE, device="cuda")
        query = torch.randn(batch, HEADS, DIM, dtype=DTYPE, device="cuda")
        lse = log_sum_exp(query, reference.gather_keys(kv_cache[:, 0], table, CONTEXT))
        out = torch.zeros(batch, device="cuda")
        layers.append(Layer(query=query, kv_cache=kv_cache, lse=lse, out=out))
    return rows, layers


def log_sum_exp(query: Tensor, keys: Tensor) -> Tensor:
    """[heads, rows], in FlashAttention's place, which computes it on the way."""
    grouped = query.float().view(len(query), KV_HEADS, HEADS // KV_HEADS, DIM)
    scores = DIM**-0.5 * grouped @ keys.float().transpose(2, 3)
    return scores.logsumexp(-1).flatten(1).t().contiguous()


def fused(rows: Rows, layer: Layer, lse: Tensor | None) -> None:
    visual_ratio(
        layer.query,
        layer.kv_cache[:, 0],
        rows.query_start_loc,
        rows.seq_lens,
        rows.block_table,
        rows.spans,
        DIM**-0.5,
        layer.out,
        lse=lse,
    )


def naive(rows: Rows, layer: Layer) -> Tensor:
    keys = reference.gather_keys(layer.kv_cache[:, 0], rows.block_table, CONTEXT)
    visual = reference.visual_mask(rows.spans, CONTEXT)
    return reference.visual_ratio(layer.query, keys, visual, rows.seq_lens, DIM**-0.5)


def graph_of(way: Callable[[Layer], object], layers: list[Layer]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compile and allocate before the capture
        way(layers[0])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in layers:
            way(layer)
    return graph


def replay_us(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


def copy_bandwidth() -> float:
    """GB/s read and written by a copy of 2 GiB."""
    source = torch.empty(2**30, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    graph = torch.cuda.CUDAGraph()
    target.copy_(source)
    with torch.cuda.graph(graph):
        target.copy_(source)
    seconds = min(replay_us(graph) for _ in range(10)) / 1e6
    return 2 * source.nbytes / seconds / 1e9


if __name__ == "__main__":
    main()
