"""The CPU kernels against the reference, on caches that vLLM's own op wrote."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from vapo_verl.attention import reference
from vapo_verl.attention.kernels import cpu
from vapo_verl.attention.kernels.cpu import KeyLayout

ops = pytest.importorskip("vllm._custom_ops")

if not (hasattr(torch.ops, "_C") and hasattr(torch.ops._C, "cpu_attn_reshape_and_cache")):
    pytest.skip("vLLM's CPU ops are not in this environment", allow_module_level=True)

SPANS = [[(5, 70)], [(3, 9), (11, 30)], [], [(2, 200)], [(0, 2)], [(-1, -1)], []]
QUERIES = [1, 1, 1, 5, 1, 1, 0]  # decode rows, a prefill chunk, a padded row
CONTEXT = [100, 37, 64, 20, 3, 50, 0]  # keys before the queries
SPARE = 3  # rows of an engine's buffers behind those of the batch


class Case:
    """A random paged cache, its rows, and the same keys in plain form."""

    def __init__(
        self, heads=4, kv_heads=2, dim=32, block_size=16, dtype=torch.float32, isa="vec16"
    ):
        rng = torch.Generator().manual_seed(0)
        self.layout = KeyLayout.of(dtype, isa)
        self.scale = dim**-0.5
        lens = [c + q if q else 0 for c, q in zip(CONTEXT, QUERIES, strict=True)]
        self.seq_lens = torch.tensor(lens, dtype=torch.int32)
        self.query_start_loc = torch.tensor([0, *itertools.accumulate(QUERIES)], dtype=torch.int32)
        per_row = [-(-n // block_size) for n in lens]
        free = (torch.randperm(sum(per_row), generator=rng) + 1).int().tolist()
        self.block_table = torch.zeros(len(lens) + SPARE, max(per_row) + 2, dtype=torch.int32)
        self.block_table[len(lens) :] = 10**6  # blocks that do not exist
        num_blocks = sum(per_row) + 1
        self.cache = torch.full(
            (num_blocks, kv_heads, block_size, 2 * dim), float("nan"), dtype=dtype
        )
        tokens = int(self.query_start_loc[-1]) + 3
        self.query = torch.randn(tokens, heads, dim, generator=rng).to(dtype)
        self.query[tokens - 3 :] = float("nan")  # padding behind the batch
        self.keys = torch.zeros(len(lens), kv_heads, max(lens), dim, dtype=dtype)
        key_cache, value_cache = self.cache.view(num_blocks, kv_heads, 2 * block_size, dim).chunk(
            2, 2
        )
        for row, n in enumerate(lens):
            blocks = [free.pop() for _ in range(per_row[row])]
            self.block_table[row, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
            key = (2 * torch.randn(n, kv_heads, dim, generator=rng)).to(dtype)
            slots = [blocks[j // block_size] * block_size + j % block_size for j in range(n)]
            if n:
                ops.cpu_attn_reshape_and_cache(
                    key, key, key_cache, value_cache, torch.tensor(slots), isa
                )
            self.keys[row, :, :n] = key.transpose(0, 1)
        self.spans = torch.zeros(len(lens) + SPARE, 4, 2, dtype=torch.int32)
        self.spans[len(lens) :, 0] = torch.tensor([-1, -1])
        for row, spans in enumerate(SPANS):
            for i, span in enumerate(spans):
                self.spans[row, i] = torch.tensor(span)

    def expected(self, window=None):
        spans = self.spans[: self.rows]
        visual = reference.visual_mask(spans, self.keys.shape[2])
        query = self.query[(self.query_start_loc[1:] - 1).long()].double()
        ratio = reference.visual_ratio(
            query, self.keys.double(), visual, self.seq_lens, self.scale, window
        )
        return ratio.where(spans[:, 0, 0] >= 0, float("nan")).float()

    @property
    def rows(self):
        return len(self.seq_lens)

    def compiled(self, window=None):
        assert cpu.compiled_function() is not None, "no C compiler on this machine"
        return self.computed(window)

    def plain(self, window=None):
        """As on a machine without a compiler."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu, "compiled_function", lambda: None)
            return self.computed(window)

    def computed(self, window=None):
        out = torch.full((self.rows + SPARE,), 7.0)
        starts = torch.cat((self.query_start_loc, torch.full((SPARE,), 10**6, dtype=torch.int32)))
        rows = (starts, self.seq_lens, self.block_table, self.spans)
        cpu.visual_ratio(self.query, self.cache, self.layout, *rows, self.scale, out, window)
        assert (out[self.rows :] == 7).all(), "it wrote behind the batch's rows"
        return out[: self.rows]


amx = pytest.mark.skipif(
    not torch.cpu._is_amx_tile_supported(),
    reason="this CPU has no AMX: vLLM cannot write its layout",
)


@pytest.mark.parametrize("kernel", ["compiled", "plain"])
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(
    ("dtype", "isa", "block_size"),
    [
        (torch.float32, "vec16", 16),
        (torch.float32, "vec16", 48),
        (torch.float32, "vec", 128),
        (torch.bfloat16, "vec16", 16),
        (torch.bfloat16, "vec", 32),
        pytest.param(torch.bfloat16, "amx", 32, marks=amx),
        pytest.param(torch.bfloat16, "amx", 128, marks=amx),
    ],
)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(4, 2, 32), (7, 1, 64), (28, 4, 128), (6, 6, 96)]
)
def test_agrees_with_the_reference(kernel, window, dtype, isa, block_size, heads, kv_heads, dim):
    case = Case(heads, kv_heads, dim, block_size, dtype, isa)
    if kernel == "plain":
        case.cache.nan_to_num_()  # it gathers whole blocks and masks afterwards
    got = getattr(case, kernel)(window)
    torch.testing.assert_close(got, case.expected(window), rtol=0, atol=1e-6, equal_nan=True)
    assert got[2] == 0  # text only
    assert got[5].isnan()  # marked
    assert got[6] == 0  # padded


def test_a_span_off_by_one_is_seen():
    case = Case()
    case.spans[0, 0] += 1
    shifted = case.expected()
    case.spans[0, 0] -= 1
    assert abs(case.compiled() - shifted)[0] > 1e-4


def test_one_row_does_not_depend_on_its_neighbours():
    case = Case(heads=28, kv_heads=4, dim=128)
    together = case.compiled()
    for row in (0, 1, 3):
        alone = torch.zeros(1)
        cpu.visual_ratio(
            case.query,
            case.cache,
            case.layout,
            case.query_start_loc[row : row + 2],
            case.seq_lens[row : row + 1],
            case.block_table[row : row + 1],
            case.spans[row : row + 1].contiguous(),
            case.scale,
            alone,
        )
        assert alone[0] == together[row]


@pytest.mark.parametrize("kernel", ["compiled", "plain"])
def test_a_batch_may_have_any_number_of_rows(kernel):
    """The buffers of an engine are as long as its largest batch."""
    case = Case()
    case.cache.nan_to_num_()
    expected, seq_lens, starts = case.expected(), case.seq_lens, case.query_start_loc
    for rows in range(len(expected) + 1):
        case.seq_lens, case.query_start_loc = seq_lens[:rows], starts[: rows + 1]
        got = getattr(case, kernel)()
        torch.testing.assert_close(got, expected[:rows], rtol=0, atol=1e-6, equal_nan=True)
    case.seq_lens = torch.zeros(2, dtype=torch.int32)
    assert (getattr(case, kernel)() == 0).all()


def test_large_scores_neither_overflow_nor_vanish():
    case = Case()
    case.query *= 100
    torch.testing.assert_close(case.compiled(), case.expected(), rtol=0, atol=1e-5, equal_nan=True)


def test_unknown_layouts_are_refused():
    with pytest.raises(ValueError, match=r"dtype=torch\.float16"):
        KeyLayout.of(torch.float16, "vec")
    with pytest.raises(ValueError, match="'neon'"):
        KeyLayout.of(torch.float32, "neon")


def test_without_a_compiler_pytorch_gives_the_same(monkeypatch):
    said = []
    monkeypatch.setattr(cpu.logger, "warning", lambda text, *values: said.append(text % values))
    case = Case()
    case.cache.nan_to_num_()
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    cpu.compiled_function.cache_clear()
    try:
        got = case.computed()
    finally:
        cpu.compiled_function.cache_clear()
    torch.testing.assert_close(got, case.expected(), rtol=0, atol=1e-6, equal_nan=True)
    assert "no C compiler found" in said[0]


def test_loading_it_leaves_denormals_alone():
    """A library linked with -ffast-math flushes them for the whole process: other tokens."""
    code = (
        "import numpy as np\n"
        "from vapo_verl.attention.kernels.cpu import compiled_function\n"
        "assert compiled_function() is not None\n"
        "print(np.float32(1e-40) * np.float32(0.5) > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
    assert np.float32(1e-40) > 0
