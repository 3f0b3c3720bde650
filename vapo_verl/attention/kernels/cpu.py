"""The visual attention ratio on vLLM's CPU KV cache: compiled C, or PyTorch without a compiler."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vapo_verl.attention import reference
from vapo_verl.attention.kernels import CacheLayout, kv_views

logger = logging.getLogger(__name__)

LANES = 16
"""Keys the C code takes at a time; vLLM's CPU block sizes are multiples of it."""

Cache = Float[Tensor, "blocks kv_heads block_size 2*dim"]
Queries = Float[Tensor, "tokens heads dim"]
Rows = Float[Tensor, "rows"]
Lengths = Int[Tensor, "rows"]
Starts = Int[Tensor, "starts"]
Table = Int[Tensor, "table_rows max_blocks"]
Spans = Int[Tensor, "span_rows max_spans 2"]
# Not -ffast-math: linking with it makes the process flush denormals, which would change
# the model's arithmetic.
FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)
TIMEOUT_S = 120.0


class KeyLayout(IntEnum):
    """How the keys of one block and KV head lie in vLLM 0.24's CPU cache (enum layout in the C)."""

    FLOAT32 = 0
    """[dim, key]."""
    BFLOAT16 = 1
    """[dim, key]."""
    BFLOAT16_PAIRS = 2
    """[key / 16, dim / 2, key % 16, dim % 2]: AMX wants pairs along the dim."""

    @classmethod
    def of(cls, dtype: torch.dtype, isa: str) -> KeyLayout:
        """Layout for a cache of `dtype` written by vLLM's attention kernels for `isa`.

        Raises:
            ValueError: a dtype or instruction set whose layout is not known here.
        """
        if dtype == torch.float32 and isa in ("vec", "vec16"):
            return cls.FLOAT32
        if dtype == torch.bfloat16 and isa in ("vec", "vec16"):
            return cls.BFLOAT16
        if dtype == torch.bfloat16 and isa == "amx":
            return cls.BFLOAT16_PAIRS
        raise ValueError(
            f"visual attention cannot read a KV cache of dtype={dtype} with vLLM's CPU attention "
            f"{isa!r}: use dtype=float32 or bfloat16 on x86, or leave visual attention off"
        )


def visual_ratio(
    query: Queries,
    kv_cache: Cache,
    layout: KeyLayout,
    query_start_loc: Starts,
    seq_lens: Lengths,
    block_table: Table,
    spans: Spans,
    scale: float,
    out: Float[Tensor, " out_rows"],
    window: int | None = None,
) -> None:
    """Write each row's visual attention ratio (reference.visual_ratio) to `out`.

    Row r's query is token query_start_loc[r + 1] - 1. A row of length 0 gets 0, one with a span
    that starts below 0 gets nan. The integer tensors are int32; `out` is contiguous float32.
    `seq_lens` gives the number of rows: spare rows of the other arguments are not read, and
    entries of `out` behind the rows are left alone.
    """
    arguments = (query, kv_cache, layout, query_start_loc, seq_lens, block_table, spans, scale)
    if compiled_function() is None:
        out[: seq_lens.shape[0]] = visual_ratio_torch(*arguments, window=window)
    else:
        _call_c(*arguments, out, window or 0)


def visual_ratio_torch(
    query: Queries,
    kv_cache: Cache,
    layout: KeyLayout,
    query_start_loc: Starts,
    seq_lens: Lengths,
    block_table: Table,
    spans: Spans,
    scale: float,
    window: int | None = None,
) -> Rows:
    """The same without a compiler, by gathering every key of every row: slower."""
    rows, (_, _, block_size, twice_dim) = seq_lens.shape[0], kv_cache.shape
    if rows == 0:
        return query.new_empty(0, dtype=torch.float32)
    spans, context = spans[:rows], int(seq_lens.max())
    used = block_table[:rows, : -(-context // block_size)].long()
    raw = kv_views(kv_cache, CacheLayout.HALVES).key[used]  # [rows, n, kv_heads, block * dim]
    keys = _unpack_keys(raw, layout, block_size, twice_dim // 2)  # [rows, n, kv_heads, dim, block]
    keys = keys.permute(0, 2, 1, 4, 3).flatten(2, 3)[:, :, :context]
    last = (query_start_loc[1 : rows + 1] - 1).long()
    visual = reference.visual_mask(spans, context)
    ratio = reference.visual_ratio(query[last], keys, visual, seq_lens, scale, window)
    marked = (spans[:, :, 0] < 0).any(1) & (seq_lens > 0)
    return ratio.masked_fill(marked, float("nan"))


def _unpack_keys(raw: Tensor, layout: KeyLayout, block_size: int, dim: int) -> Tensor:
    """[..., block_size * dim] as it lies in the cache -> [..., dim, block_size]."""
    if layout is not KeyLayout.BFLOAT16_PAIRS:
        return raw.unflatten(-1, (dim, block_size))
    tiles = raw.unflatten(-1, (block_size // LANES, dim // 2, LANES, 2))
    order = [*range(tiles.ndim - 4), -3, -1, -4, -2]
    return tiles.permute(order).flatten(-4, -3).flatten(-2, -1)


class _Arguments(ctypes.Structure):
    """struct visual_ratio_args of the C source, field by field."""

    _fields_ = (
        ("query", ctypes.c_void_p),
        ("query_token_stride", ctypes.c_int64),
        ("query_head_stride", ctypes.c_int64),
        ("key", ctypes.c_void_p),
        ("key_block_stride", ctypes.c_int64),
        ("key_head_stride", ctypes.c_int64),
        ("block_table", ctypes.c_void_p),
        ("block_table_stride", ctypes.c_int64),
        ("seq_lens", ctypes.c_void_p),
        ("query_start_loc", ctypes.c_void_p),
        ("spans", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("rows", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("dim", ctypes.c_int32),
        ("block_size", ctypes.c_int32),
        ("max_spans", ctypes.c_int32),
        ("layout", ctypes.c_int32),
        ("window", ctypes.c_int32),
    )


@functools.cache
def compiled_function() -> Callable[[Any], int] | None:
    """The C kernel, compiled at the first call; None, with a warning, without a C compiler."""
    try:
        function = load_library(Path(__file__).with_name("visual_ratio.c")).visual_ratio
    except CannotCompileError as e:
        logger.warning("Visual attention is recorded by PyTorch, some 20 times slower: %s", e)
        return None
    function.argtypes, function.restype = [ctypes.POINTER(_Arguments)], ctypes.c_int
    return function


def _call_c(
    query: Tensor,
    kv_cache: Tensor,
    layout: KeyLayout,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    spans: Tensor,
    scale: float,
    out: Tensor,
    window: int,
) -> None:
    _, kv_heads, block_size, twice_dim = kv_cache.shape
    key = kv_views(kv_cache, CacheLayout.HALVES).key
    integers = (query_start_loc, seq_lens, block_table, spans)
    assert all(x.dtype == torch.int32 and x.stride(-1) == 1 for x in integers)
    assert query.stride(2) == 1 and query.dtype == key.dtype and key.stride(2) == 1
    assert spans.is_contiguous() and out.is_contiguous()
    assert out.dtype == torch.float32 and block_size % LANES == 0
    arguments = _Arguments(
        query=query.data_ptr(),
        query_token_stride=query.stride(0),
        query_head_stride=query.stride(1),
        key=key.data_ptr(),
        key_block_stride=key.stride(0),
        key_head_stride=key.stride(1),
        block_table=block_table.data_ptr(),
        block_table_stride=block_table.stride(0),
        seq_lens=seq_lens.data_ptr(),
        query_start_loc=query_start_loc.data_ptr(),
        spans=spans.data_ptr(),
        out=out.data_ptr(),
        scale=scale,
        rows=seq_lens.shape[0],
        heads=query.shape[1],
        kv_heads=kv_heads,
        dim=twice_dim // 2,
        block_size=block_size,
        max_spans=spans.shape[1],
        layout=layout,
        window=window,
    )
    function = compiled_function()
    assert function is not None
    if function(ctypes.byref(arguments)) != 0:
        raise MemoryError("no memory for the scores of the visual attention ratio")


class CannotCompileError(RuntimeError):
    """No usable C compiler; the message lists the attempts."""


def load_library(source: Path) -> ctypes.CDLL:
    """The shared library of `source`, compiled if the cache has none for this CPU and compiler.

    OpenMP comes from the runtime that the process has loaded (torch's): one thread pool.

    Raises:
        CannotCompileError: there is no compiler, or it fails.
    """
    compiler = _compiler()
    recipe = "\0".join([source.read_text(), compiler, *FLAGS, _cpu()])
    name = f"{source.stem}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.so"
    for folder in (_cache_folder(), _temporary_folder()):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_uid != os.getuid():
                raise PermissionError(f"{folder} belongs to another user")
            library = folder / name
            if not library.exists():
                compile_library(compiler, source, library)
            return ctypes.CDLL(str(library))
        except OSError as e:
            problem = e
    raise CannotCompileError(f"no folder to keep {name} in: {problem}") from problem


def compile_library(compiler: str, source: Path, library: Path) -> None:
    """Compile `source` to `library` atomically, with OpenMP where the compiler has it.

    Raises:
        CannotCompileError: the compiler fails or takes longer than `TIMEOUT_S`.
    """
    handle, draft = tempfile.mkstemp(dir=library.parent, suffix=".so")
    os.close(handle)
    try:
        for openmp in (["-fopenmp"], []):
            command = [compiler, *FLAGS, *openmp, str(source), "-o", draft, "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
            if done.returncode == 0:
                os.replace(draft, library)  # atomic: another process may be compiling the same
                return
        raise CannotCompileError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    except subprocess.TimeoutExpired as e:
        raise CannotCompileError(f"{compiler} ran for more than {TIMEOUT_S:.0f} s") from e
    finally:
        Path(draft).unlink(missing_ok=True)


def _compiler() -> str:
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise CannotCompileError("no C compiler found: install gcc or clang, or set CC")


def _cache_folder() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vapo_verl"
    except RuntimeError:  # a user without a home, as in some containers
        return _temporary_folder()


def _temporary_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"vapo_verl-{os.getuid()}"


def _cpu() -> str:
    """The CPU features behind -march=native: different machines may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform()
    return "\n".join(
        sorted({x for x in lines if x.startswith(("flags", "model name", "Features"))})
    )
