"""Writes rows to a parquet file that appears whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vapo_verl.whole_file import written_whole

_ROWS_PER_GROUP = 64
"""Rows held in memory before they are written: with images, some ten megabytes."""


class RowWriter:
    """Buffers rows and writes them in groups."""

    def __init__(self, writer: pq.ParquetWriter):
        self._writer = writer
        self._rows: list[dict[str, object]] = []

    def add(self, row: dict[str, object]) -> None:
        self._rows.append(row)
        if len(self._rows) == _ROWS_PER_GROUP:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._writer.schema))
            self._rows = []


@contextmanager
def atomic_parquet(path: Path, schema: pa.Schema) -> Iterator[RowWriter]:
    """Write beside `path`, and move there on success; on any error leave `path` as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        rows = RowWriter(writer)
        yield rows
        rows.flush()
