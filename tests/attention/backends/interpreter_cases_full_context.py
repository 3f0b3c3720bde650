"""The recording backends that walk the whole context, kernels in Triton's interpreter.

vLLM's `forward` methods are real; the CUDA functions they call are replaced, and so is the package
flashinfer, which has no build without CUDA. Run by tests/attention/test_interpreter.py.
"""

import importlib
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from vllm.v1.attention.backends.utils import set_kv_cache_layout

from vapo_verl.attention.backends.recording import Batch
from vapo_verl.attention.kernels import kv_views, layout_of

NAMES = {"triton_attn": "TRITON_ATTN", "flashinfer": "FLASHINFER", "flash_attn": "FLASH_ATTN"}
STANDS_IN = ("flashinfer", "flashinfer.decode", "flashinfer.prefill", "flashinfer.utils")


@pytest.fixture(autouse=True, scope="module")
def flashinfer():
    backend_of("flash_attn")  # and with it the modules that look whether flashinfer is installed
    with pytest.MonkeyPatch.context() as patch:
        for name in STANDS_IN:
            patch.setitem(sys.modules, name, MagicMock())
        upstream = importlib.import_module("vllm.v1.attention.backends.flashinfer")
        patch.setattr(upstream, "can_use_trtllm_attention", lambda *heads: False)
        yield


def backend_of(module):
    ours = importlib.import_module(f"vapo_verl.attention.backends.{module}")
    (backend,) = (v for k, v in vars(ours).items() if k.startswith("Recording") and "Backend" in k)
    return backend


def attended(module, impl, batch, monkeypatch):
    """Run the layer with an attention of zeros; what counts is what is recorded after it."""
    rows = {n: getattr(batch, n) for n in ("query_start_loc", "seq_lens", "block_table")}
    common = {"num_actual_tokens": sum(batch.queries), "rows": Batch(**rows)}
    output = torch.ones_like(batch.query)
    upstream = importlib.import_module(f"vllm.v1.attention.backends.{module}")
    if module == "triton_attn":

        def unified_attention(q, k, out, seqused_k, **kwargs):
            assert (k == batch.key_cache).logical_or(k.isnan()).all()
            out.zero_()

        monkeypatch.setattr(upstream, "unified_attention", unified_attention)
        metadata = MagicMock(**common, **rows, use_cascade=False)
    else:
        zeros = MagicMock(run=lambda query, kv_cache: torch.zeros_like(query))
        metadata = upstream.FlashInferMetadata(
            num_actual_tokens=common["num_actual_tokens"],
            slot_mapping=None,
            q_data_type=batch.dtype,
            num_decodes=0,
            num_decode_tokens=0,
            num_prefills=0,
            num_prefill_tokens=0,
            causal=True,
            prefill=None,
            decode=None,
            use_cascade=True,
            cascade_wrapper=zeros,
        )
        metadata.rows = common["rows"]  # as the builder's mixin does
    scales = SimpleNamespace(**{f"_{x}_scale": torch.ones(()) for x in "qkv"})
    impl.forward(scales, batch.query, batch.query, batch.query, batch.kv_cache, metadata, output)
    return output[: sum(batch.queries)]


@pytest.mark.parametrize("module", ["triton_attn", "flashinfer"])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("window", [None, 40])
def test_ratio_agrees_with_the_reference(module, layout, window, paged_batch, monkeypatch):
    batch = paged_batch(layout=layout, heads=7, kv_heads=1)
    impl_class = backend_of(module).get_impl_cls()
    impl = impl_class(batch.heads, batch.dim, batch.scale, batch.kv_heads, None, window, "auto")
    no_clock = SimpleNamespace(recording=lambda: torch.no_grad())
    ratio = torch.full((2, batch.rows + 4), 7.0)
    impl.capture = SimpleNamespace(spans=batch.spans, ratio=ratio, clock=no_clock)
    impl.slot = 1
    assert (attended(module, impl, batch, monkeypatch) == 0).all()
    torch.testing.assert_close(
        ratio[1, : batch.rows], batch.expected(window), rtol=0, atol=2e-6, equal_nan=True
    )
    assert (ratio[0] == 7).all()
    assert (ratio[1, batch.rows :] == 7).all()


@pytest.mark.parametrize("module", NAMES)
def test_keys_of_a_packed_cache_are_recorded(module, paged_batch):
    """The cache of vLLM 0.26 and later; `forward` of 0.24 does not take it, `record` does."""
    batch = paged_batch(layout="packed", heads=7, kv_heads=1)
    impl_class = backend_of(module).get_impl_cls()
    impl = impl_class(batch.heads, batch.dim, batch.scale, batch.kv_heads, None, None, "auto")
    impl.slot = 0
    ratio = torch.full((1, batch.rows), 7.0)
    rows = {n: getattr(batch, n) for n in ("query_start_loc", "seq_lens", "block_table")}
    capture = SimpleNamespace(spans=batch.spans, ratio=ratio)
    impl.record(capture, batch.query, batch.kv_cache, Batch(**rows))
    torch.testing.assert_close(ratio[0], batch.expected(), rtol=0, atol=2e-6, equal_nan=True)
    with pytest.raises(ValueError, match="cannot read a KV cache of shape"):
        impl.record(capture, batch.query, batch.kv_cache.transpose(1, 2), Batch(**rows))


@pytest.mark.parametrize("module", NAMES)
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_keys_of_a_cache_as_vllm_lays_it_out(module, layout):
    blocks, block_size, kv_heads, dim = 5, 16, 4, 8
    set_kv_cache_layout(layout)
    try:
        backend = backend_of(module)
        shape = backend.get_kv_cache_shape(blocks, block_size, kv_heads, dim)
        order = backend.get_kv_cache_stride_order()
    finally:
        set_kv_cache_layout(None)
    # as GPUModelRunner: memory in stride order, seen in the order of the shape
    memory = torch.zeros([shape[i] for i in order])
    cache = memory.permute(*(order.index(i) for i in range(len(order))))
    cache[3, 0, 7, 2] = 1.0  # the key of block 3, slot 7, head 2
    keys = kv_views(cache, layout_of(cache, kv_heads, dim)).key
    assert keys.shape == (blocks, block_size, kv_heads, dim)
    assert keys[3, 7, 2].eq(1).all()
    assert keys.sum() == dim
    assert keys.stride()[1:] == {"NHD": (32, 8, 1), "HND": (8, 128, 1)}[layout]
    assert keys.stride(0) == 2 * block_size * kv_heads * dim


@pytest.mark.parametrize("module", NAMES)
def test_backends_keep_vllms_names(module):
    backend = backend_of(module)
    assert backend.get_name() == NAMES[module]
    assert backend.get_impl_cls().__name__.startswith("Recording")
    assert backend.get_builder_cls().__name__.startswith("Recording")


def test_chunked_attention_and_quantized_keys_are_refused():
    impl_class = backend_of("triton_attn").get_impl_cls()
    plain = (4, 32, 0.2, 2, None, None)
    impl_class(*plain, "auto").check_recordable(torch.bfloat16)
    for arguments, message in (
        ({"kv_cache_dtype": "int8_per_token_head"}, "kv_cache_dtype=int8_per_token_head"),
        ({"kv_cache_dtype": "auto", "chunk_lookback": 1}, "chunk_lookback=1"),
    ):
        with pytest.raises(ValueError, match=message):
            impl_class(*plain, **arguments).check_recordable(torch.bfloat16)
