"""Options that all probing commands share, and fingerprints of model and data."""

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vapo_verl.config import ANSWER_STYLES
from vapo_verl.run_folder import RunError

FOLDER = "diagnostics"
"""Of all results inside a run folder."""
_END_BYTES = 2**20
_FOOTER_LENGTH_BYTES = 8
"""Of the length and the magic that end a parquet file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Where the model is, and how vLLM runs it."""

    model: str
    dtype: str = "auto"
    max_model_len: int | None = None
    block_size: int = 16
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    kv_cache_gib: float | None = None
    max_num_seqs: int = 128
    min_pixels: int | None = None
    max_pixels: int | None = None
    attention_layers: str | tuple[int, ...] | None = None
    """As :func:`vapo_verl.attention.engine_args` takes them."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOptions:
    """What is asked, and where the results go."""

    engine: EngineOptions
    data: Path
    out: Path
    num_rows: int | None
    """None: all rows."""
    batch: int
    """Rows in work at once: a killed run loses at most so many."""
    max_tokens: int
    """Of one response."""
    temperature: float
    answer_style: str
    seed: int

    def settings(self) -> dict[str, Any]:
        """All that results depend on, but for rounding: a folder keeps to it."""
        engine = self.engine
        return {
            "MODEL": model_fingerprint(engine.model),
            "DATA": parquet_fingerprint(self.data),
            "--num-rows": self.num_rows,
            "--seed": self.seed,
            "--answer-style": self.answer_style,
            "--max-tokens": self.max_tokens,
            "--temperature": self.temperature,
            "--dtype": engine.dtype,
            "--max-model-len": engine.max_model_len,
            "--min-pixels": engine.min_pixels,
            "--max-pixels": engine.max_pixels,
            "--attention-layers": engine.attention_layers,
        }


def add_probe_arguments(parser: argparse.ArgumentParser, *, attention: bool) -> None:
    """Arguments of every command; `attention` adds the one that chooses layers."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder or hub name of a Qwen2.5-VL or Qwen3-VL checkpoint")
    add("data", type=Path, metavar="DATA", help="parquet file of the row format")
    add("--run", type=Path, metavar="RUN_DIR", help="results go to RUN_DIR/diagnostics/COMMAND")
    add("--out", type=Path, metavar="DIR", help="results go there")
    add("--num-rows", type=int, default=256, help="rows drawn, 0 for all (%(default)s)")
    add("--seed", type=int, default=0, help="of every draw (%(default)s)")
    add("--batch", type=int, default=64, help="rows in work at once (%(default)s)")
    add("--max-tokens", type=int, default=1024, help="of a response (%(default)s)")
    add("--temperature", type=float, default=0.0, help="of responses; 0 is greedy (%(default)s)")
    add(
        "--answer-style",
        choices=ANSWER_STYLES,
        default="math",
        help="how answers are compared where a row does not say (%(default)s)",
    )
    add("--min-pixels", type=int, help="smaller images are enlarged (4 image tokens)")
    add("--max-pixels", type=int, help="larger images are shrunk (16384 image tokens)")
    engine = parser.add_argument_group("engine").add_argument
    engine("--dtype", default="auto", help="of the weights (%(default)s: the checkpoint's)")
    engine("--max-model-len", type=int, help="tokens of a context (the model's, at most 16384)")
    engine("--block-size", type=int, default=16, help="of the KV cache (%(default)s)")
    engine("--max-num-seqs", type=int, default=128, help="requests at once (%(default)s)")
    engine("--kv-cache-gib", type=float, help="memory of the KV cache (1 on CPU, the rest on GPU)")
    engine("--tensor-parallel-size", type=int, default=1, help="GPUs (%(default)s)")
    engine("--gpu-memory-utilization", type=float, default=0.9, help="(%(default)s)")
    if attention:
        engine("--attention-layers", help="`all`, or indices as 3,10 (one layer in 8)")


def probe_options(arguments: argparse.Namespace, command: str) -> ProbeOptions:
    """Read the arguments of :func:`add_probe_arguments`.

    Raises:
        RunError: a value out of its range, no place for results, or no such data file.
    """
    at_least_1 = ("batch", "max_tokens", "block_size", "max_num_seqs", "tensor_parallel_size")
    optional = ("max_model_len", "min_pixels", "max_pixels")
    for name in (*at_least_1, *(n for n in optional if getattr(arguments, n) is not None)):
        require_at_least(arguments, name, 1)
    for name in ("num_rows", "temperature", "seed"):
        require_at_least(arguments, name, 0)
    if not arguments.data.is_file():
        raise RunError(f"DATA: {arguments.data} does not exist; give the path of a parquet file")
    return ProbeOptions(
        engine=EngineOptions(
            model=arguments.model,
            dtype=arguments.dtype,
            max_model_len=arguments.max_model_len,
            block_size=arguments.block_size,
            tensor_parallel_size=arguments.tensor_parallel_size,
            gpu_memory_utilization=arguments.gpu_memory_utilization,
            kv_cache_gib=arguments.kv_cache_gib,
            max_num_seqs=arguments.max_num_seqs,
            min_pixels=arguments.min_pixels,
            max_pixels=arguments.max_pixels,
            attention_layers=_layers(getattr(arguments, "attention_layers", None)),
            seed=arguments.seed,
        ),
        data=arguments.data,
        out=_out(arguments, command),
        num_rows=arguments.num_rows or None,
        batch=arguments.batch,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        answer_style=arguments.answer_style,
        seed=arguments.seed,
    )


def require_at_least(arguments: argparse.Namespace, name: str, low: float) -> None:
    """Raises RunError when an argument is smaller."""
    value = getattr(arguments, name)
    if value < low:
        raise RunError(f"--{name.replace('_', '-')} {value}: give {low} or more")


def _out(arguments: argparse.Namespace, command: str) -> Path:
    if arguments.out is not None:
        return arguments.out
    if arguments.run is None:
        raise RunError(f"give --run RUN_DIR, for RUN_DIR/{FOLDER}/{command}, or --out DIR")
    if not arguments.run.is_dir():
        raise RunError(f"--run {arguments.run}: no such folder; give a run's folder, or --out DIR")
    return arguments.run / FOLDER / command


def _layers(text: str | None) -> str | tuple[int, ...] | None:
    if text is None or text == "all":
        return text
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise RunError(f"--attention-layers {text}: give `all` or indices as 3,10") from error


def model_fingerprint(model: str) -> str:
    """A folder's name, and a digest of its config and of the sizes and both ends of its weights.

    The first and the last MiB of each file are read, not all of it. A name on the hub stays as it
    is. The folder may be moved.
    """
    folder = Path(model)
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("config.json"), *folder.glob("*.safetensors")]):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_END_BYTES))
            file.seek(max(size - _END_BYTES, 0))
            digest.update(file.read())
    return f"{folder.resolve().name} {digest.hexdigest()[:16]}"


def parquet_fingerprint(path: Path) -> str:
    """A parquet file's name, and a digest of its size and footer, which describes all columns."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - _FOOTER_LENGTH_BYTES, 0))
        footer = int.from_bytes(file.read(4), "little")
        file.seek(max(size - _FOOTER_LENGTH_BYTES - footer, 0))
        digest = hashlib.sha256(f"{size}\n".encode() + file.read())
    return f"{path.name} {digest.hexdigest()[:16]}"
