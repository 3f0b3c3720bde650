"""Streams a training file through a join into a new file."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from vapo_verl.claims.attach.column import CLAIMS, num_filled, set_claims, with_claims
from vapo_verl.claims.attach.index import read_index
from vapo_verl.claims.attach.join import ClaimJoin
from vapo_verl.claims.attach.options import AttachOptions
from vapo_verl.claims.attach.report import AttachReport
from vapo_verl.claims.attach.writer import atomic_tables
from vapo_verl.data.claims_column import Claim
from vapo_verl.data.errors import BadCell, FileError
from vapo_verl.data.parquet_stream import open_parquet, require_columns
from vapo_verl.data.problem_log import ProblemLog

_ROWS_PER_BATCH = 32
_NAME_COLUMN = "name the images' column with --column"
_OTHER_IMAGES = (
    "claims belong to an image file byte for byte: make them from this file, or from one whose"
    " images were not encoded anew"
)


def attach_claims(options: AttachOptions) -> AttachReport:
    """Write `options.train` with its claims to `options.out`; memory does not grow with the rows.

    Raises:
        FileError: a file that is missing, damaged or lacks the column; claims that are there
            already, without `replace`; or not one row covered.
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
            for table in _joined(parquet, join, options, log):
                groups.add(table)
            log.raise_if_any()
            if not join.num_rows_joined:
                found = f"TRAIN: no row of {train} has its images in {options.claims_dir}"
                raise FileError(f"{found}; {_OTHER_IMAGES}")
    return join.report()


def _refuse_existing(parquet: pq.ParquetFile, options: AttachOptions) -> None:
    """First of all, and from one column alone: a person waits for it."""
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
        for row in batch.select(names).to_pylist():
            try:
                claims.append(join.claims_of(number, row[options.column], row.get(CLAIMS)))
            except BadCell as bad:
                log.add(bad.at(number), str(options.train))
                claims.append(())
            number += 1
        table = set_claims(pa.Table.from_batches([batch]), claims)
        yield table.filter(pa.array(map(bool, claims))) if options.drop_uncovered else table


def _batches(
    parquet: pq.ParquetFile, options: AttachOptions, columns: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """A few rows at a time; of those of `columns` that are there, or of all."""
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
