"""Kernels of the visual attention ratio, and the layouts of keys and values in vLLM's paged caches.

Changes of vLLM's caches are handled here: backends and kernels know a cache's shape only through
:func:`kv_views` and :func:`layout_of`.
"""

from enum import Enum
from typing import NamedTuple

from torch import Tensor


class CacheLayout(Enum):
    """How one layer's cache tensor is divided into keys and values."""

    BLOCKS_FIRST = "blocks first"
    """[blocks, 2, block_size, kv_heads, dim]: FLASH_ATTN, TRITON_ATTN and FLASHINFER of vLLM 0.24.
    VLLM_KV_CACHE_LAYOUT, NHD or HND, changes the strides only."""
    PACKED = "packed"
    """[blocks, kv_heads, block_size, 2 * dim], a token's key before its value: the same backends
    from vLLM 0.26 on (vllm-project/vllm#44455). With block_size before kv_heads in memory (NHD) the
    strides differ, not the shape."""
    HALVES = "halves"
    """[blocks, kv_heads, block_size, 2 * dim]: the first block_size * dim numbers of a block and
    head are its keys, the others its values: CPU_ATTN of vLLM 0.24."""


class KeyValueViews(NamedTuple):
    """Keys and values of a layer as views of its cache; nothing is copied.

    Of BLOCKS_FIRST and PACKED: [blocks, block_size, kv_heads, dim]. Of HALVES: [blocks, kv_heads,
    block_size * dim], in the order that the CPU's instruction set asks for (`cpu.KeyLayout`).
    """

    key: Tensor
    value: Tensor


def kv_views(cache: Tensor, layout: CacheLayout) -> KeyValueViews:
    """Keys and values in a layer's paged cache.

    Raises:
        ValueError: the cache lacks the layout's number of dimensions, or two equal halves.
    """
    if layout is CacheLayout.BLOCKS_FIRST:
        if cache.ndim != 5 or cache.shape[1] != 2:
            raise ValueError(_unlike(cache, layout))
        return KeyValueViews(cache[:, 0], cache[:, 1])
    if cache.ndim != 4 or cache.shape[3] % 2:
        raise ValueError(_unlike(cache, layout))
    blocks, kv_heads, block_size, twice_dim = cache.shape
    if layout is CacheLayout.PACKED:
        key, value = cache.transpose(1, 2).split(twice_dim // 2, dim=3)
    else:
        halves = cache.view(blocks, kv_heads, 2, block_size * twice_dim // 2)
        key, value = halves.unbind(2)
    return KeyValueViews(key, value)


def layout_of(cache: Tensor, kv_heads: int, dim: int) -> CacheLayout:
    """The layout of a cache that a CUDA backend of vLLM made; CPU_ATTN's is always HALVES.

    Raises:
        ValueError: an unknown shape; the message lists the known ones.
    """
    if cache.ndim == 5 and cache.shape[1] == 2 and cache.shape[3:] == (kv_heads, dim):
        return CacheLayout.BLOCKS_FIRST
    if cache.ndim == 4 and (cache.shape[1], cache.shape[3]) == (kv_heads, 2 * dim):
        return CacheLayout.PACKED
    raise ValueError(
        f"visual attention cannot read a KV cache of shape {tuple(cache.shape)} with "
        f"{kv_heads} KV heads of {dim}: known are (blocks, 2, block_size, kv_heads, dim) and "
        "(blocks, kv_heads, block_size, 2 * dim); use vllm 0.24, or leave capture off"
    )


def _unlike(cache: Tensor, layout: CacheLayout) -> str:
    return f"a KV cache of shape {tuple(cache.shape)} is not {layout.value}"
