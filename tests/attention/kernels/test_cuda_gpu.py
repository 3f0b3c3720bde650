"""The Triton kernels on a GPU: against the reference, and inside a CUDA graph."""

import pytest
import torch

from vapo_verl.attention.kernels.cuda import visual_ratio

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
modes = pytest.mark.parametrize("with_lse", [True, False], ids=["lse", "full"])


def computed(batch, with_lse, **options):
    out = torch.full((batch.rows + 2,), 7.0, device="cuda")
    lse = batch.lse(options.get("window")) if with_lse else None
    visual_ratio(*batch.arguments, out, lse=lse, **options)
    assert (out[batch.rows :] == 7).all(), "it wrote behind the batch's rows"
    return out[: batch.rows]


def assert_agree(got, expected):
    # all inputs are upcast without loss, and products of 16-bit floats are exact in float32
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5, equal_nan=True)


@modes
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "block_size", "layout"),
    [
        (28, 4, 128, 16, "NHD"),
        (7, 1, 64, 32, "HND"),
        (8, 8, 80, 48, "packed"),
        (16, 2, 256, 128, "NHD"),
    ],
)
def test_agrees_with_the_reference(
    paged_batch, heads, kv_heads, dim, block_size, layout, dtype, window, with_lse
):
    batch = paged_batch(
        heads=heads,
        kv_heads=kv_heads,
        dim=dim,
        block_size=block_size,
        layout=layout,
        dtype=dtype,
        device="cuda",
    )
    assert_agree(computed(batch, with_lse, window=window), batch.expected(window))


def test_the_lse_may_have_any_strides(paged_batch):
    batch = paged_batch(heads=7, kv_heads=1, device="cuda")
    lse, got = batch.lse(), torch.zeros(batch.rows, device="cuda")
    for strided in (lse.t().contiguous().t(), lse.repeat_interleave(3, 1)[:, ::3]):
        visual_ratio(*batch.arguments, got.fill_(7.0), lse=strided)
        assert_agree(got, batch.expected())


@modes
def test_long_rows_are_shared_by_many_programs(paged_batch, with_lse):
    batch = paged_batch(
        heads=28,
        kv_heads=4,
        dim=128,
        dtype=torch.bfloat16,
        device="cuda",
        queries=(1,),
        context=(5000,),
        spans_of_rows=(((13, 2051), (2058, 2060), (3001, 4777)),),
    )
    for num_splits in (None, 1, 5, 32):
        assert_agree(computed(batch, with_lse, num_splits=num_splits), batch.expected())


@modes
def test_reruns_give_the_same_bits(paged_batch, with_lse):
    batch = paged_batch(heads=28, kv_heads=4, dim=128, dtype=torch.bfloat16, device="cuda")
    first = computed(batch, with_lse)
    for _ in range(20):
        torch.testing.assert_close(computed(batch, with_lse), first, rtol=0, atol=0, equal_nan=True)


@modes
def test_a_cuda_graph_follows_its_inputs(paged_batch, with_lse):
    kind = {"heads": 28, "kv_heads": 4, "dim": 128, "dtype": torch.bfloat16, "device": "cuda"}
    kind["num_blocks"] = 30
    one = paged_batch(**kind)
    # the same shapes with other rows: one more is padding, spans and blocks differ
    other = paged_batch(
        **kind,
        seed=1,
        queries=(1, 5, 1, 1, 1, 1, 0, 0),
        context=(100, 33, 12, 61, 50, 7, 0, 0),
        spans_of_rows=(((0, 99),), ((-1, -1),), ((3, 7), (8, 9)), (), ((1, 2),), ((0, 8),), (), ()),
    )
    expected = [computed(batch, with_lse).clone() for batch in (one, other)]
    lse = one.lse() if with_lse else None
    out = torch.zeros(one.rows, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        visual_ratio(*one.arguments, out, lse=lse)

    def replay(batch):
        fresh_lse = batch.lse() if with_lse else None
        for name in ("query", "key_cache", "query_start_loc", "seq_lens", "block_table", "spans"):
            mine, new = getattr(one, name), getattr(batch, name)
            assert mine.shape == new.shape, name
            mine.copy_(new)
        if with_lse:
            lse.copy_(fresh_lse)
        out.fill_(7.0)
        graph.replay()
        return out.clone()

    keep = paged_batch(**kind)
    for batch, wanted in ((other, expected[1]), (keep, expected[0])):
        torch.testing.assert_close(replay(batch), wanted, rtol=0, atol=0, equal_nan=True)
