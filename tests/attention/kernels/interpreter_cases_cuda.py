"""The Triton kernels in Triton's interpreter; run by tests/attention/test_interpreter.py."""

import pytest
import torch

from vapo_verl.attention.kernels import cuda

FLOAT32_TOLERANCE = 2e-6
BF16, FP16 = torch.bfloat16, torch.float16


def computed(batch, with_lse, window=None, num_splits=None):
    out = torch.full((batch.rows + 2,), 7.0)
    cuda.visual_ratio(
        *batch.arguments,
        out,
        lse=batch.lse(window) if with_lse else None,
        window=window,
        num_splits=num_splits,
    )
    assert (out[batch.rows :] == 7).all(), "it wrote behind the batch's rows"
    return out[: batch.rows]


def assert_agree(got, expected, tolerance=FLOAT32_TOLERANCE):
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance, equal_nan=True)


modes = pytest.mark.parametrize("with_lse", [True, False], ids=["lse", "full"])


def test_the_interpreter_is_on():
    assert cuda.INTERPRETED


@modes
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"layout": "HND", "block_size": 32},
        {"layout": "packed", "block_size": 48},
        {"heads": 7, "kv_heads": 1, "dim": 64, "layout": "packed"},
        {"heads": 28, "kv_heads": 4, "dim": 128},
        {"heads": 8, "kv_heads": 8, "dim": 80, "block_size": 64},
        {"heads": 7, "kv_heads": 1, "dtype": BF16, "layout": "HND"},
        {"heads": 28, "kv_heads": 4, "dim": 128, "dtype": BF16},
        {"dim": 80, "dtype": FP16, "block_size": 128},
    ],
    ids=lambda kind: "-".join(str(value) for value in kind.values()) or "plain",
)
def test_agrees_with_the_reference(paged_batch, kind, with_lse):
    batch = paged_batch(**kind)
    got = computed(batch, with_lse)
    assert_agree(got, batch.expected())
    assert got[2] == 0  # text only
    assert got[5].isnan()  # marked
    assert (got[6:] == 0).all()  # padded
    assert 0.05 < got[0] < 0.95  # one that would show an error


@modes
@pytest.mark.parametrize("num_splits", [2, 3, 32])
def test_splits_do_not_change_the_ratio(paged_batch, with_lse, num_splits):
    batch = paged_batch(context=(250, 37, 64, 20, 3, 50, 0, 0))
    batch.spans[0] = torch.tensor([(1, 4), (6, 150), (151, 215), (0, 0), (220, 221)])
    assert_agree(computed(batch, with_lse, num_splits=num_splits), batch.expected())


@modes
@pytest.mark.parametrize("window", [1, 40, 1000])
def test_a_sliding_window_hides_older_keys(paged_batch, with_lse, window):
    batch = paged_batch()
    got = computed(batch, with_lse, window, num_splits=2)
    assert_agree(got, batch.expected(window))
    assert (abs(got[0] - batch.expected()[0]) > 1e-2) == (window < 1000)  # row 0 has 101 keys


@modes
@pytest.mark.parametrize("edge", [0, 1], ids=["start", "end"])
def test_a_span_off_by_one_is_seen(paged_batch, with_lse, edge):
    batch = paged_batch()
    right = batch.expected()[0]
    batch.spans[0, 0, edge] += 1
    assert abs(computed(batch, with_lse)[0] - right) > 100 * FLOAT32_TOLERANCE


@modes
def test_all_keys_visual_is_one(paged_batch, with_lse):
    batch = paged_batch()
    batch.spans[:, 0], batch.spans[:, 1:] = torch.tensor([0, 10**6]), 0
    assert_agree(computed(batch, with_lse), (batch.seq_lens > 0).float())


@modes
def test_a_mark_may_stand_in_any_span(paged_batch, with_lse):
    batch = paged_batch()
    batch.spans[0, 3] = torch.tensor([-1, 50])
    got = computed(batch, with_lse)
    assert got[0].isnan()
    assert_agree(got[1:], batch.expected()[1:])


@modes
def test_large_logits_neither_overflow_nor_vanish(paged_batch, with_lse):
    batch = paged_batch()
    batch.query *= 100
    # float32 keeps logits of 10^3 to 10^-4
    assert_agree(computed(batch, with_lse), batch.expected(), tolerance=5e-4)


def test_a_nan_in_the_keys_is_not_hidden(paged_batch):
    batch = paged_batch()
    batch.key_cache[batch.block_table[0, 2], 3] = float("nan")
    assert computed(batch, with_lse=False)[0].isnan()
    assert computed(batch, with_lse=True)[0].isnan()


def test_the_lse_may_have_any_strides(paged_batch):
    batch = paged_batch(heads=7, kv_heads=1)
    lse, got = batch.lse(), torch.zeros(batch.rows)
    for strided in (lse.t().contiguous().t(), lse.repeat_interleave(3, 1)[:, ::3]):
        cuda.visual_ratio(*batch.arguments, got.fill_(7.0), lse=strided)
        assert_agree(got, batch.expected())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_row_whose_lse_is_not_finite_is_missing(paged_batch, value):
    batch = paged_batch()
    lse, got = batch.lse(None), torch.full((batch.rows,), 7.0)
    lse[0, 0] = value
    cuda.visual_ratio(*batch.arguments, got, lse=lse, window=None)
    assert got[0].isnan()
    assert_agree(got[1:], batch.expected()[1:])


def test_no_rows_is_no_work(paged_batch):
    batch = paged_batch()
    batch.seq_lens = batch.seq_lens[:0]
    computed(batch, with_lse=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda b: setattr(b, "query", b.query.half()),
            "keys torch.float32, queries torch.float16",
        ),
        (lambda b: setattr(b, "query", b.query.repeat(1, 1, 2)[..., ::2]), "unit stride in dim"),
        (lambda b: setattr(b, "query", b.query[:, :3]), "3 heads do not share 2 KV heads evenly"),
        (lambda b: setattr(b, "seq_lens", b.seq_lens[::2]), "seq_lens must be contiguous"),
        (lambda b: setattr(b, "spans", b.spans[:3]), "spans has 3 entries, 8 needed"),
    ],
)
def test_wrong_arguments_are_named(paged_batch, change, message):
    batch = paged_batch()
    change(batch)
    with pytest.raises(AssertionError, match=message):
        cuda.visual_ratio(*batch.arguments, torch.zeros(8))
