"""Writes Arrow tables to a parquet file that appears whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vapo_verl.whole_file import written_whole

_ROWS_PER_GROUP = 1024
_BYTES_PER_GROUP = 32 << 20
"""A row group is full at this many bytes, or at `_ROWS_PER_GROUP` rows, whichever comes first.
A reader of a parquet file holds a row group: with images, rows alone would be no bound."""


class GroupWriter:
    """Gathers small tables into row groups; memory is that of one group."""

    def __init__(self, writer: pq.ParquetWriter):
        self._writer = writer
        self._tables: list[pa.Table] = []
        self._num_rows = self._num_bytes = 0

    def add(self, table: pa.Table) -> None:
        self._tables.append(table)
        self._num_rows += table.num_rows
        self._num_bytes += table.get_total_buffer_size()
        if self._num_rows >= _ROWS_PER_GROUP or self._num_bytes >= _BYTES_PER_GROUP:
            self.flush()

    def flush(self) -> None:
        if self._num_rows:
            group = pa.concat_tables(self._tables)
            self._writer.write_table(group, row_group_size=group.num_rows)
        self._tables = []
        self._num_rows = self._num_bytes = 0


@contextmanager
def atomic_tables(path: Path, schema: pa.Schema, compression: str) -> Iterator[GroupWriter]:
    """Write beside `path`, and move there on success; on any error leave `path` as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        written_whole(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression=compression) as writer,
    ):
        groups = GroupWriter(writer)
        yield groups
        groups.flush()
