"""Where keys and values lie in the cache layouts of today's vLLM and of the next."""

import ast
from pathlib import Path

import pytest
import torch

import vapo_verl.attention
from vapo_verl.attention.kernels import CacheLayout, kv_views, layout_of

BLOCKS, BLOCK_SIZE, KV_HEADS, DIM = 3, 16, 2, 8
SPLIT = (BLOCKS, 2, BLOCK_SIZE, KV_HEADS, DIM)
PACKED = (BLOCKS, KV_HEADS, BLOCK_SIZE, 2 * DIM)


def numbered(shape):
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def shares_memory(view, cache):
    return view.untyped_storage().data_ptr() == cache.untyped_storage().data_ptr()


@pytest.mark.parametrize("strides", ["NHD", "HND"])
def test_blocks_first(strides):
    cache = numbered(SPLIT)
    if strides == "HND":
        cache = cache.transpose(2, 3).contiguous().transpose(2, 3)
    key, value = kv_views(cache, layout_of(cache, KV_HEADS, DIM))
    assert key.shape == value.shape == (BLOCKS, BLOCK_SIZE, KV_HEADS, DIM)
    assert torch.equal(torch.stack([key, value], 1), cache)
    assert shares_memory(key, cache)
    assert key.stride(3) == 1


@pytest.mark.parametrize("strides", ["HND", "NHD"])
def test_key_and_value_of_a_token_side_by_side(strides):
    cache = numbered(PACKED)
    if strides == "NHD":
        cache = cache.transpose(1, 2).contiguous().transpose(1, 2)
    key, value = kv_views(cache, layout_of(cache, KV_HEADS, DIM))
    assert key.shape == value.shape == (BLOCKS, BLOCK_SIZE, KV_HEADS, DIM)
    for block, slot, head in ((0, 0, 0), (2, 15, 1), (1, 7, 0)):
        assert torch.equal(key[block, slot, head], cache[block, head, slot, :DIM])
        assert torch.equal(value[block, slot, head], cache[block, head, slot, DIM:])
    assert shares_memory(value, cache)
    assert key.stride(3) == 1  # what the kernels rely on


def test_keys_of_a_block_before_its_values():
    cache = numbered(PACKED)
    key, value = kv_views(cache, CacheLayout.HALVES)
    assert key.shape == value.shape == (BLOCKS, KV_HEADS, BLOCK_SIZE * DIM)
    assert torch.equal(torch.cat([key, value], 2), cache.flatten(2))
    assert shares_memory(key, cache)


def test_halves_are_where_vllm_writes_keys_and_values():
    ops = pytest.importorskip("vllm._custom_ops")
    if not (hasattr(torch.ops, "_C") and hasattr(torch.ops._C, "cpu_attn_reshape_and_cache")):
        pytest.skip("vLLM's CPU ops are not in this environment")
    dim = 32
    cache = torch.zeros(BLOCKS, KV_HEADS, BLOCK_SIZE, 2 * dim)
    whole = cache.view(BLOCKS, KV_HEADS, 2 * BLOCK_SIZE, dim).chunk(2, 2)
    key = torch.full((1, KV_HEADS, dim), 3.0)
    ops.cpu_attn_reshape_and_cache(key, 2 * key, *whole, torch.tensor([BLOCK_SIZE + 5]), "vec16")
    views = kv_views(cache, CacheLayout.HALVES)
    for view, written in zip(views, (3.0, 6.0), strict=True):
        assert set(view.unique().tolist()) == {0.0, written}
        assert (view[1] == written).sum() == KV_HEADS * dim


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (CacheLayout.BLOCKS_FIRST, PACKED),
        (CacheLayout.BLOCKS_FIRST, (2, BLOCKS, BLOCK_SIZE, KV_HEADS, DIM)),
        (CacheLayout.PACKED, SPLIT),
        (CacheLayout.HALVES, SPLIT),
        (CacheLayout.PACKED, (BLOCKS, KV_HEADS, BLOCK_SIZE, 7)),
    ],
)
def test_a_cache_of_another_layout_is_refused(layout, shape):
    with pytest.raises(ValueError, match=f"is not {layout.value}"):
        kv_views(torch.zeros(shape), layout)


@pytest.mark.parametrize(
    "shape",
    [
        (2, BLOCKS, BLOCK_SIZE, KV_HEADS, DIM),  # keys first, as in older releases
        (BLOCKS, BLOCK_SIZE, KV_HEADS, 2 * DIM),
        (BLOCKS, KV_HEADS, BLOCK_SIZE, DIM),
        (BLOCKS, BLOCK_SIZE, 2 * KV_HEADS * DIM),
    ],
)
def test_an_unknown_shape_names_the_known_ones(shape):
    with pytest.raises(ValueError, match=r"2 KV heads of 8: known are .* use vllm 0\.24"):
        layout_of(torch.zeros(shape), KV_HEADS, DIM)


def test_no_other_module_divides_a_cache():
    """`kv_cache[...]`, `.unbind`, `.chunk` and the like stand in one file."""
    folder = Path(vapo_verl.attention.__file__).parent
    ways = {"unbind", "chunk", "split", "view", "narrow", "select"}
    found = []
    for path in folder.parent.rglob("*.py"):
        if path == folder / "kernels" / "__init__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            of = node.value if isinstance(node, ast.Subscript | ast.Attribute) else None
            name = getattr(of, "attr", getattr(of, "id", None))
            if name == "kv_cache" and (isinstance(node, ast.Subscript) or node.attr in ways):
                found.append(f"{path}:{node.lineno}")
    assert found == []
