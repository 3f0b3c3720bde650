"""The visual attention ratio in plain PyTorch: the definition that all kernels must match."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Queries = Float[Tensor, "rows heads dim"]
Keys = Float[Tensor, "rows kv_heads context dim"]
PerKey = Bool[Tensor, "rows context"]
Rows = Float[Tensor, "rows"]
Lengths = Int[Tensor, "rows"]
Spans = Int[Tensor, "rows spans 2"]


def visual_ratio(
    query: Queries,
    keys: Keys,
    visual: PerKey,
    seq_lens: Lengths,
    scale: float,
    window: int | None = None,
) -> Rows:
    """Fraction of softmax attention on visual keys, averaged over heads, for one query a row.

    ratio_r = 1/H * sum_h sum_{j visual} softmax_j(scale * q_rh . k_rj), j < seq_lens[r]

    (appendix A.4 of arXiv 2509.25848, one layer). The query is the last one of its row, so every
    key below `seq_lens` is one it may attend to; with a sliding `window` only the last `window` of
    them are. Head h reads the keys of KV head h // (heads / kv_heads). A row of length 0 has
    ratio 0. The arithmetic is done in the queries' dtype, float32 at least.
    """
    rows, heads, dim = query.shape
    kv_heads, context = keys.shape[1:3]
    exact = torch.promote_types(query.dtype, torch.float32)
    grouped = query.to(exact).view(rows, kv_heads, heads // kv_heads, dim)
    scores = scale * grouped @ keys.to(exact).transpose(2, 3)  # [rows, kv_heads, group, context]
    position = torch.arange(context, device=query.device)
    reachable = position < seq_lens[:, None]
    if window is not None:
        reachable &= position >= seq_lens[:, None] - window
    scores = scores.masked_fill(~reachable[:, None, None], float("-inf"))
    mass = (scores.softmax(-1) * visual[:, None, None]).sum(-1)
    return mass.flatten(1).mean(1).where(seq_lens > 0, 0.0)


def visual_mask(spans: Spans, context: int) -> PerKey:
    """True for the keys 0 .. context-1 in one of the row's half-open [start, end) spans."""
    position = torch.arange(context, device=spans.device)
    inside = (position >= spans[:, :, :1]) & (position < spans[:, :, 1:])
    return inside.any(1)


def gather_keys(
    key_cache: Float[Tensor, "blocks block_size kv_heads dim"],
    block_table: Int[Tensor, "rows max_blocks"],
    context: int,
) -> Keys:
    """The first `context` keys of each row out of a paged cache; the rest is undefined."""
    block_size = key_cache.shape[1]
    blocks = block_table[:, : -(-context // block_size)].long()
    return key_cache[blocks].flatten(1, 2)[:, :context].transpose(1, 2)
