"""Streams a training file through a join into a new file, written atomically."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vapo_verl.claims.attach.join import AttachReport, ClaimJoin, read_index
from vapo_verl.claims.options import AttachOptions
from vapo_verl.console import progress_bar
from vapo_verl.data.claims_column import Claim
from vapo_verl.data.errors import BadCell, FileError, ProblemLog
from vapo_verl.data.parquet_stream import (
    kept_rows,
    open_parquet,
    plain_rows,
    require_columns,
    row_schema,
)
from vapo_verl.files import atomic_write

_ROWS_PER_BATCH = 32
_NAME_COLUMN = "name the images' column with --column"
_OTHER_IMAGES = (
    "claims belong to an image file byte for byte: make them from this file, or from one whose"
    " images were not encoded again"
)
CLAIMS = "claims"
_FIELD = row_schema(embedded_images=True).field(CLAIMS)
_ROWS_PER_GROUP = 1024
_BYTES_PER_GROUP = 32 << 20
"""A row group ends at this many bytes or at `_ROWS_PER_GROUP` rows, whichever comes first.
Readers hold a row group in memory; with images, a row count alone does not bound its size."""


def attach_claims(options: AttachOptions) -> AttachReport:
    """Write `options.train` with its claims to `options.out`; memory does not grow with the rows.

    Raises:
        FileError: the file is missing, damaged or lacks the column; it has claims already, without
            `replace`; or no row is covered.
        RowError: rows whose images or old claims cannot be read.
    """
    train = options.train
    with open_parquet(train, key="TRAIN") as parquet:
        require_columns(parquet, [options.column], path=str(train), fix=_NAME_COLUMN)
        if not options.replace:
            _refuse_existing(parquet, options)
        join = ClaimJoin(read_index(options.claims_dir, min_claims=options.min_claims), options)
        log = ProblemLog()
        schema, codec = with_claims(parquet.schema_arrow), _compression(parquet)
        with atomic_tables(options.out, schema, codec) as groups:
            with progress_bar(parquet.metadata.num_rows, unit="row") as progress:
                for table in _joined(parquet, join, options, log):
                    groups.add(table)
                    progress.update(join.num_rows - progress.n)
            log.raise_if_any()
            if not join.num_rows_joined:
                found = f"TRAIN: no row of {train} has its images in {options.claims_dir}"
                raise FileError(f"{found}; {_OTHER_IMAGES}")
    return join.report()


def _refuse_existing(parquet: pq.ParquetFile, options: AttachOptions) -> None:
    """Runs first and reads one column only, because the user waits for it."""
    if count := sum(num_filled(batch) for batch in _batches(parquet, options, [CLAIMS])):
        found = f"TRAIN: {options.train} has claims already in {count} rows"
        raise FileError(f"{found}; add --replace to put new ones in their place")


def _joined(
    parquet: pq.ParquetFile, join: ClaimJoin, options: AttachOptions, log: ProblemLog
) -> Iterator[pa.Table]:
    number = 0
    for batch in _batches(parquet, options):
        claims: list[tuple[Claim, ...]] = []
        names = [name for name in (options.column, CLAIMS) if name in batch.schema.names]
        for row in plain_rows(batch.select(names)):
            try:
                claims.append(join.claims_of(number, row[options.column], row.get(CLAIMS)))
            except BadCell as bad:
                log.add(bad.at(number), str(options.train))
                claims.append(())
            number += 1
        table = set_claims(pa.Table.from_batches([batch]), claims)
        if options.drop_uncovered:
            table = kept_rows(table, np.array([len(row) > 0 for row in claims]))
        yield table


def _batches(
    parquet: pq.ParquetFile, options: AttachOptions, columns: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Batches of a few rows, with those of `columns` that the file has; None reads all."""
    present = None if columns is None else list({*columns} & {*parquet.schema_arrow.names})
    if present == []:
        return
    try:
        yield from parquet.iter_batches(batch_size=_ROWS_PER_BATCH, columns=present)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise FileError(
            f"TRAIN: cannot read {options.train}: {reason}; download or make it again"
        ) from error


def _compression(parquet: pq.ParquetFile) -> str:
    codec: str = parquet.metadata.row_group(0).column(0).compression
    return "none" if codec == "UNCOMPRESSED" else codec.lower()


def with_claims(schema: pa.Schema) -> pa.Schema:
    """The schema with the `claims` column: in its old place, else last.

    The metadata is unchanged. The `datasets` library stores column features in it, and uses the
    schema for a column that these features lack or describe differently.
    """
    if CLAIMS in schema.names:
        return schema.set(schema.get_field_index(CLAIMS), _FIELD)
    return schema.append(_FIELD)


def set_claims(table: pa.Table, claims: Sequence[tuple[Claim, ...]]) -> pa.Table:
    """The table with one tuple of claims per row, in the column position of `with_claims`."""
    cells = pa.array([[claim.as_dict() for claim in row] for row in claims], _FIELD.type)
    if CLAIMS in table.schema.names:
        return table.set_column(table.schema.get_field_index(CLAIMS), _FIELD, cells)
    return table.append_column(_FIELD, cells)


def num_filled(batch: pa.RecordBatch) -> int:
    """Rows of the batch whose `claims` are neither null nor an empty list."""
    column = batch.column(CLAIMS)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return pc.sum(pc.greater(pc.list_value_length(column), 0)).as_py() or 0
    return len(column) - column.null_count


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
        atomic_write(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression=compression) as writer,
    ):
        groups = GroupWriter(writer)
        yield groups
        groups.flush()
