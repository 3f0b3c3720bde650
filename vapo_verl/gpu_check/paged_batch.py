"""Random rows over a paged KV cache, with NaN wherever a kernel has no business reading."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from vapo_verl.attention import reference
from vapo_verl.attention.kernels import kv_views, layout_of

NAN = float("nan")


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
        ((2, 21), (23, 200)),  # ends behind the chunk that is there
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
