"""Stage `kernel_speed`: time of the kernels at the shapes of Qwen2.5-VL-7B's decode.

Every way runs in a CUDA graph over several layers' caches, so that none finds its keys in the L2
cache; rounds of the ways are interleaved and medians reported. `x_ideal` is the time over that of
reading the keys once at the bandwidth of a copy. A decode step is estimated at that bandwidth too:

    step = (weights + 2 * layers * batch * context * KV bytes of a token and layer) / bandwidth

Without CUDA, small sizes run in Triton's interpreter: this tests the code; its times mean nothing.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from vapo_verl.attention import reference
from vapo_verl.attention.kernels import CacheLayout, kv_views
from vapo_verl.attention.settings import spread
from vapo_verl.gpu_check.case import Check, require
from vapo_verl.gpu_check.results import Figure, significant

NUM_LAYERS = 28
WEIGHT_BYTES = 7.07e9 * 2
"""Read in a decode step: the language model without its input embedding, bfloat16."""
DTYPE = torch.bfloat16
BLOCK_SIZE, MAX_SPANS = 16, 32
FIRST_IMAGE_TOKEN, TEXT_TOKENS = 21, 676
"""Unaligned start of the image, and the tokens of a row beside its image tokens."""
MIN_CACHES_BYTES, MAX_CACHES_BYTES = 0.5e9, 12e9
"""Size of the caches of all layers of a graph: well above any L2 cache, well below the memory."""
NUM_ROUNDS = 30
CHECKED_ROWS = 4
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One decode step's batch."""

    batch: int
    image_tokens: int
    heads: int = 28
    kv_heads: int = 4
    dim: int = 128
    device: str = "cuda"

    @property
    def context(self) -> int:
        return self.image_tokens + TEXT_TOKENS

    @property
    def key_bytes(self) -> int:
        """Of one token's keys in one layer."""
        return self.kv_heads * self.dim * DTYPE.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Inputs that all layers of a step share."""

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


def run(check: Check) -> None:
    if check.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
        shapes = [Shape(batch=2, image_tokens=64, heads=7, kv_heads=1, dim=64, device="cpu")]
        bandwidth = 10e9
    else:
        torch.manual_seed(0)
        shapes = [
            Shape(batch=batch, image_tokens=tokens)
            for tokens in (1024, 4096)
            for batch in (128, 1, 32, 512)
        ]
        bandwidth = copy_bandwidth()
    for shape in shapes:
        name = f"batch {shape.batch}, {shape.image_tokens} image tokens"
        check.case(name, partial(measure, shape, bandwidth), needs_s=3)


def measure(shape: Shape, bandwidth: float) -> Mapping[str, Figure]:
    """Time both ways of the kernel.

    Args:
        bandwidth: bytes read and written per second by a copy.

    Raises:
        CaseFailed: a ratio is off from the reference.
    """
    rows, layers = decode_step(shape)
    ways: dict[str, Callable[[Layer], None]] = {
        "visual_keys": lambda layer: _fused(rows, layer, layer.lse),
        "whole_context": lambda layer: _fused(rows, layer, None),
    }
    expected = _reference(rows, layers[0], shape)
    for name, way in ways.items():
        way(layers[0])
        error = (layers[0].out[:CHECKED_ROWS] - expected).abs().max().item()
        require(error < TOLERANCE, f"{name}: off by {error:.1e} from the reference")
    timers = {name: timer(way, layers) for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(NUM_ROUNDS if shape.device == "cuda" else 1):
        for name, run_once in timers.items():
            times[name].append(run_once() / len(layers))
    keys_of_layer = shape.batch * shape.context * shape.key_bytes
    step_s = (WEIGHT_BYTES + 2 * NUM_LAYERS * keys_of_layer) / bandwidth
    captured = len(spread(list(range(NUM_LAYERS))))
    figures: dict[str, Figure] = {"copy_gb_s": round(bandwidth / 1e9)}
    read = {"visual_keys": shape.image_tokens, "whole_context": shape.context}
    for name, values in times.items():
        seconds = median(values)
        ideal = shape.batch * read[name] * shape.key_bytes / bandwidth
        figures |= {
            f"{name}_us": significant(1e6 * seconds, 3),
            f"{name}_x_ideal": significant(seconds / ideal, 3),
            f"{name}_percent_of_step_1_in_8": significant(100 * captured * seconds / step_s),
            f"{name}_percent_of_step_all": significant(100 * NUM_LAYERS * seconds / step_s),
        }
    return figures


def decode_step(shape: Shape) -> tuple[Rows, list[Layer]]:
    """Random queries and paged keys of enough layers to exceed the L2 cache."""
    per_row = -(-shape.context // BLOCK_SIZE)
    num_blocks, device = shape.batch * per_row, shape.device
    int32 = {"dtype": torch.int32, "device": device}
    spans = torch.zeros(shape.batch, MAX_SPANS, 2, **int32)  # type: ignore[call-overload]
    end = FIRST_IMAGE_TOKEN + shape.image_tokens
    spans[:, 0] = torch.tensor((FIRST_IMAGE_TOKEN, end))
    table = torch.randperm(num_blocks, device=device).int().view(shape.batch, per_row)
    rows = Rows(
        query_start_loc=torch.arange(shape.batch + 1, dtype=torch.int32, device=device),
        seq_lens=torch.full((shape.batch,), shape.context, dtype=torch.int32, device=device),
        block_table=table,
        spans=spans,
    )
    sizes = (num_blocks, 2, BLOCK_SIZE, shape.kv_heads, shape.dim)
    layer_bytes = math.prod(sizes) * DTYPE.itemsize
    wanted = max(4, math.ceil(MIN_CACHES_BYTES / layer_bytes))
    number = max(1, min(wanted, int(MAX_CACHES_BYTES / layer_bytes)))
    if device == "cpu":
        number = 1
    return rows, [_layer(shape, sizes, table) for _ in range(number)]


def _layer(shape: Shape, sizes: tuple[int, ...], table: Tensor) -> Layer:
    kv_cache = torch.randn(sizes, dtype=DTYPE, device=shape.device)
    query = torch.randn(shape.batch, shape.heads, shape.dim, dtype=DTYPE, device=shape.device)
    lse = torch.empty(shape.heads, shape.batch, device=shape.device)
    for row in range(shape.batch):  # a row at a time: all keys gathered would not fit
        keys = reference.gather_keys(_keys(kv_cache), table[row : row + 1], shape.context)
        lse[:, row] = _log_sum_exp(query[row], keys[0])
    out = torch.zeros(shape.batch, device=shape.device)
    return Layer(query=query, kv_cache=kv_cache, lse=lse, out=out)


def _keys(kv_cache: Tensor) -> Tensor:
    return kv_views(kv_cache, CacheLayout.BLOCKS_FIRST).key


def _log_sum_exp(query: Tensor, keys: Tensor) -> Tensor:
    """[heads]; replaces the value that FlashAttention computes on the way."""
    kv_heads, _, dim = keys.shape
    grouped = query.float().view(kv_heads, -1, dim)
    scores = dim**-0.5 * grouped @ keys.float().transpose(1, 2)
    return scores.logsumexp(-1).flatten()


def _fused(rows: Rows, layer: Layer, lse: Tensor | None) -> None:
    from vapo_verl.attention.kernels.cuda import visual_ratio

    visual_ratio(
        layer.query,
        _keys(layer.kv_cache),
        rows.query_start_loc,
        rows.seq_lens,
        rows.block_table,
        rows.spans,
        layer.query.shape[2] ** -0.5,
        layer.out,
        lse=lse,
    )


def _reference(rows: Rows, layer: Layer, shape: Shape) -> Tensor:
    """Ratios of the first rows."""
    some = slice(0, CHECKED_ROWS)
    keys = reference.gather_keys(_keys(layer.kv_cache), rows.block_table[some], shape.context)
    visual = reference.visual_mask(rows.spans[some], shape.context)
    scale = shape.dim**-0.5
    return reference.visual_ratio(layer.query[some], keys, visual, rows.seq_lens[some], scale)


def timer(way: Callable[[Layer], None], layers: list[Layer]) -> Callable[[], float]:
    """A function that runs `way` over all layers and returns the seconds it took."""

    def run_all() -> None:
        for layer in layers:
            way(layer)

    if layers[0].query.device.type == "cpu":

        def seconds() -> float:
            start = time.perf_counter()
            run_all()
            return time.perf_counter() - start

        return seconds
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compile and allocate before the capture
        way(layers[0])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run_all()
    return partial(_replay_s, graph)


def _replay_s(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def copy_bandwidth() -> float:
    """Bytes read and written per second by a copy of 2 GiB."""
    source = torch.empty(2**30, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        target.copy_(source)
    return 2 * source.nbytes / min(_replay_s(graph) for _ in range(10))
