"""The sampled responses of a run, one after another: a few rows are in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vapo_verl.trainer.run_folder import LAYERS_KEY, ROLLOUT_FOLDER, ROLLOUT_SCHEMA, rollout_file

BATCH_ROWS = 32
_LEFT_OUT = {"prompt_ids", "response_ids", "advantages", "rollout_log_probs", "old_log_probs"}
_COLUMNS = [name for name in ROLLOUT_SCHEMA.names if name not in _LEFT_OUT]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One row of a rollout file; its cells become Python objects when they are asked for."""

    batch: pa.RecordBatch
    row: int
    layers: tuple[int, ...] = ()
    """The model's layers in the columns of `layer_attention`; empty where the file names none."""

    def cell(self, name: str) -> Any:
        """The cell as Python objects; None where the file has no such column."""
        cell = self._scalar(name)
        return None if cell is None else cell.as_py()

    def num_tokens(self) -> int:
        """Tokens of the response; 0 where they are not known."""
        cell = self._scalar("tokens")
        return 0 if cell is None or not cell.is_valid else len(cell.values)

    def attention(self) -> np.ndarray:
        """Visual attention ratio [tokens], nan where unknown; empty where none was exported."""
        cell = self._scalar("visual_attention")
        return np.empty(0) if cell is None or not cell.is_valid else _floats(cell.values)

    def layer_attention(self) -> np.ndarray | None:
        """[tokens, layers], or None where it was not exported or its rows differ in length."""
        cell = self._scalar("visual_attention_layers")
        if cell is None or not cell.is_valid or len(cell.values) == 0:
            return None
        values = _floats(cell.values.flatten())
        num_tokens = len(cell.values)
        lengths = np.asarray(cell.values.value_lengths())
        if np.any(lengths != lengths[0]) or len(values) == 0:
            return None
        return values.reshape(num_tokens, -1)

    def _scalar(self, name: str) -> Any:
        index = self.batch.schema.get_field_index(name)
        return None if index < 0 else self.batch.column(index)[self.row]


def rollout_files(run_dir: Path, steps: range | None = None) -> list[Path]:
    """Files of whole steps, or of those in `steps`; those being written have another suffix."""
    if steps is not None:
        named = (rollout_file(run_dir, step) for step in steps)
        return [path for path in named if path.exists()]
    return sorted((run_dir / ROLLOUT_FOLDER).glob("step_*.parquet"))


def read_rollouts(files: Sequence[Path], problems: list[str]) -> Iterator[Rollout]:
    """All rows of the files. A file that cannot be read adds a line to `problems`."""
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                columns = [name for name in _COLUMNS if name in schema.names]
                layers = _layers(schema)
                for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
                    yield from (Rollout(batch, row, layers) for row in range(batch.num_rows))
        except (pa.ArrowException, OSError, ValueError) as error:
            problems.append(f"{path} cannot be read and is left out: {error}")


def _layers(schema: pa.Schema) -> tuple[int, ...]:
    stored = (schema.metadata or {}).get(LAYERS_KEY.encode(), b"[]")
    return tuple(int(layer) for layer in json.loads(stored))


def _floats(values: pa.Array) -> np.ndarray:
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)
