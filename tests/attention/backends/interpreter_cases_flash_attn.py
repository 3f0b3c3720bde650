"""The recording FlashAttention backend around a stand-in for the CUDA function of vLLM.

Everything but that function is real, vLLM's `FlashAttentionImpl.forward` included; the Triton
kernels run in Triton's interpreter. Run by tests/attention/test_interpreter.py.
"""

import ast
import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import vllm
from vllm.v1.attention.backends import flash_attn

from vapo_verl.attention.backends.flash_attn import RecordingFlashAttentionBackend
from vapo_verl.attention.backends.recording import Batch
from vapo_verl.patches import flash_attention_lse


class Attention:
    """flash_attn_varlen_func in PyTorch, with a record of whether its LSE was asked for."""

    def __init__(self):
        self.lse_asked_for = []
        self.fails = False
        self.transposes = False
        """Return the LSE as FlashAttention 2 does for one KV head or one row in pure decode."""

    def __call__(
        self, q, k, v, out, cu_seqlens_q, seqused_k, softmax_scale, window_size, block_table,
        causal, return_softmax_lse=False, **kwargs,
    ):  # fmt: skip
        self.lse_asked_for.append(return_softmax_lse)
        if self.fails:
            raise RuntimeError("out of memory")
        group = q.shape[1] // k.shape[2]
        lse = torch.full((q.shape[1], q.shape[0]), float("nan"))
        for row, seq_len in enumerate(seqused_k.tolist()):
            first, end = cu_seqlens_q[row : row + 2].tolist()
            slots = torch.arange(seq_len)
            blocks = block_table[row, slots // k.shape[1]].long()
            keys, values = (
                c[blocks, slots % k.shape[1]].repeat_interleave(group, 1) for c in (k, v)
            )
            for token in range(first, end):
                position = seq_len - (end - token)
                seen = slots <= position
                if window_size[0] >= 0:
                    seen &= slots >= position - window_size[0]
                logits = softmax_scale * torch.einsum("hd,shd->hs", q[token], keys)
                logits = logits.masked_fill(~seen, float("-inf"))
                lse[:, token] = logits.logsumexp(-1)
                out[token] = torch.einsum("hs,shd->hd", logits.softmax(-1), values)
        if self.transposes:
            lse = lse.t().contiguous().t()
        return (out, lse) if return_softmax_lse else out


class Layer:
    """A layer of the engine at the moment of its forward."""

    def __init__(self, batch, window=None):
        self.batch = batch
        impl_class = RecordingFlashAttentionBackend.get_impl_cls()
        self.impl = impl_class(
            batch.heads, batch.dim, batch.scale, batch.kv_heads, None, window, "auto"
        )
        self.impl.vllm_flash_attn_version = 3  # None on a machine without GPU
        batch.kv_cache[:, 1] = torch.randn(batch.kv_cache[:, 1].shape)
        rows = (batch.query_start_loc, batch.seq_lens, batch.block_table)
        names = ("query_start_loc", "seq_lens", "block_table")
        self.metadata = flash_attn.FlashAttentionMetadata(
            num_actual_tokens=sum(batch.queries),
            max_query_len=max(batch.queries),
            max_seq_len=int(batch.seq_lens.max()),
            slot_mapping=None,
            use_cascade=False,
            common_prefix_len=0,
            cu_prefix_query_lens=None,
            prefix_kv_lens=None,
            suffix_kv_lens=None,
            **dict(zip(names, rows, strict=True)),
        )
        self.metadata.rows = Batch(**dict(zip(names, rows, strict=True)))

    def capture(self):
        no_clock = SimpleNamespace(recording=lambda: torch.no_grad())
        ratio = torch.full((3, self.batch.rows + 4), 7.0)
        self.impl.capture = SimpleNamespace(spans=self.batch.spans, ratio=ratio, clock=no_clock)
        self.impl.slot = 1
        return ratio

    def forward(self):
        scales = {f"_{x}_scale": torch.ones(()) for x in "qkv"}
        output = torch.zeros_like(self.batch.query)
        self.impl.forward(
            SimpleNamespace(**scales), self.batch.query, None, None, self.batch.kv_cache,
            self.metadata, output,
        )  # fmt: skip
        return output


@pytest.fixture
def attention(monkeypatch):
    attention = Attention()
    # an instance, as little like a function as vLLM's own wrappers may be
    monkeypatch.setattr(flash_attn, flash_attention_lse.FUNCTION, attention, raising=False)
    return attention


def assert_agree(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_ratio_agrees_with_the_reference(attention, paged_batch, layout, window):
    batch = paged_batch(layout=layout)
    layer = Layer(batch, window)
    ratio = layer.capture()
    layer.forward()
    assert attention.lse_asked_for == [True]
    assert_agree(ratio[1, : batch.rows], batch.expected(window))
    assert (ratio[[0, 2]] == 7).all()
    assert (ratio[1, batch.rows :] == 7).all()


@pytest.mark.parametrize(
    "kind",
    [
        {"heads": 7, "kv_heads": 1, "queries": (1, 1, 1), "context": (100, 37, 64)},
        {"heads": 28, "kv_heads": 4, "queries": (1,), "context": (100,)},
    ],
    ids=["one KV head", "one row"],
)
def test_a_transposed_lse_gives_the_same(attention, paged_batch, kind):
    rows = len(kind["queries"])
    batch = paged_batch(**kind, spans_of_rows=(((5, 70),), ((3, 9), (11, 30)), ())[:rows])
    attention.transposes = True
    layer = Layer(batch)
    ratio = layer.capture()
    layer.forward()
    assert 0.05 < ratio[1, 0] < 0.95
    assert_agree(ratio[1, : batch.rows], batch.expected())


def test_lse_makes_it_walk_spans_only(attention, paged_batch):
    """Keys outside the spans are nan once the attention is done: the full walk would see them."""
    batch = paged_batch()
    layer = Layer(batch)
    ratio = layer.capture()
    expected = batch.expected()
    record = layer.impl.record

    def poison_then_record(capture, query, kv_cache, rows):
        kv_cache[batch.block_table[0, 5], 0] = float("nan")  # keys 80 to 95 of row 0
        record(capture, query, kv_cache, rows)

    layer.impl.record = poison_then_record
    layer.forward()
    assert_agree(ratio[1, : batch.rows], expected)


def test_output_is_the_same_with_and_without_capture(attention, paged_batch):
    layer = Layer(paged_batch())
    without = layer.forward()
    layer.capture()
    torch.testing.assert_close(layer.forward(), without, rtol=0, atol=0)
    assert attention.lse_asked_for == [False, True]
    layer.impl.capture = None
    layer.forward()
    assert attention.lse_asked_for[-1] is False


def test_cascade_attention_walks_the_whole_context(attention, paged_batch, monkeypatch):
    def cascade_attention(output, query, key_cache, *args, **kwargs):
        """Both of its halves ask for their LSE, which is not that of all keys."""
        _, half = flash_attn.flash_attn_varlen_func(
            q=query, k=key_cache, v=key_cache, out=output, cu_seqlens_q=batch.query_start_loc,
            seqused_k=batch.seq_lens // 2, softmax_scale=1.0, window_size=(-1, -1),
            block_table=batch.block_table, causal=True, return_softmax_lse=True,
        )  # fmt: skip
        assert half.shape[0] == batch.heads

    monkeypatch.setattr(flash_attn, "cascade_attention", cascade_attention)
    batch = paged_batch()
    layer = Layer(batch)
    layer.metadata.use_cascade = True
    ratio = layer.capture()
    layer.forward()
    assert attention.lse_asked_for == [True]
    assert_agree(ratio[1, : batch.rows], batch.expected())


def test_without_a_tap_it_walks_the_whole_context(attention, paged_batch, monkeypatch):
    batch = paged_batch()
    layer = Layer(batch)
    layer.impl.tap = None
    ratio = layer.capture()
    layer.forward()
    assert attention.lse_asked_for == [False]
    assert_agree(ratio[1, : batch.rows], batch.expected())


def test_an_exception_leaves_no_state_behind(attention, paged_batch):
    batch = paged_batch()
    layer = Layer(batch)
    tap = layer.impl.tap
    layer.capture()
    attention.fails = True
    with pytest.raises(RuntimeError, match="out of memory"):
        layer.forward()
    attention.fails = False
    layer.impl.record = lambda *args: 1 / 0
    with pytest.raises(ZeroDivisionError):
        layer.forward()
    assert tap.lse is None
    layer.impl.capture = None
    layer.forward()
    assert attention.lse_asked_for == [True, True, False]
    assert tap.lse is None


def test_the_tap_is_installed_once(attention, paged_batch):
    first, second = Layer(paged_batch()), Layer(paged_batch())
    assert flash_attn.flash_attn_varlen_func is first.impl.tap is second.impl.tap
    second.forward()
    assert attention.lse_asked_for == [False]


def test_vllm_still_needs_the_tap():
    """Its forward asks for no LSE, though the function it calls could give one."""
    forward = inspect.getsource(flash_attn.FlashAttentionImpl.forward)
    assert forward.count(f"{flash_attention_lse.FUNCTION}(") == 1
    assert "return_softmax_lse" not in forward
    interface = Path(vllm.__file__).parent / "vllm_flash_attn" / "flash_attn_interface.py"
    functions = {
        node.name: node
        for node in ast.walk(ast.parse(interface.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    names = [argument.arg for argument in functions[flash_attention_lse.FUNCTION].args.args]
    assert "return_softmax_lse" in names


def test_profiling_runs_record_nothing(attention, paged_batch):
    layer = Layer(paged_batch())
    ratio = layer.capture()
    layer.metadata = None
    assert (layer.forward() == 0).all()
    assert (ratio == 7).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kv_cache_dtype": "fp8_e4m3"}, "kv_cache_dtype=fp8_e4m3.* use auto"),
        ({"logits_soft_cap": 30.0}, "logits_soft_cap"),
        ({"alibi_slopes": [1.0, 0.5, 0.25, 0.125]}, "alibi_slopes"),
        ({"attn_type": "encoder_only"}, "attn_type=encoder_only"),
    ],
)
def test_other_attention_is_refused(arguments, message):
    impl_class = RecordingFlashAttentionBackend.get_impl_cls()
    plain = dict.fromkeys(("alibi_slopes", "sliding_window")) | {"kv_cache_dtype": "auto"}
    impl_class(4, 32, 0.2, 2, **plain).check_recordable(torch.bfloat16)
    with pytest.raises(ValueError, match=message):
        impl_class(4, 32, 0.2, 2, **(plain | arguments)).check_recordable(torch.bfloat16)
