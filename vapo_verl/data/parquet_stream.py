"""Reads a parquet file row by row; memory is bounded by one of its row groups."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vapo_verl.data.errors import FileError

_ROWS_PER_BATCH = 32
_BUFFER_BYTES = 1 << 20
_FETCH_AGAIN = "download it again (a Git LFS pointer or a web page saved in its place looks so)"


def open_parquet(path: str | Path, *, key: str) -> pq.ParquetFile:
    """Open a parquet file of at least one row.

    Args:
        key: where the path was given (`data.train_files`), for the messages.

    Raises:
        FileError: no such file, a name veRL would refuse, not parquet, or without rows.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a directory, not a file" if path.is_dir() else "does not exist"
        raise FileError(f"{key}: {path} {what}; give the path of a parquet file")
    if path.suffix != ".parquet":
        raise FileError(f"{key}: {path} does not end in .parquet, and veRL goes by that; rename it")
    with _readable(path, key):
        # pre_buffer, pyarrow's default, reads ahead and keeps the whole file in memory
        parquet = pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    if parquet.metadata.num_rows == 0:
        raise FileError(f"{key}: {path} has no rows; make it again, or leave it out")
    return parquet


def iter_rows(
    parquet: pq.ParquetFile, columns: Sequence[str], *, path: str | Path, key: str
) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (row number from 0, row), each row with all of `columns`: those absent are null."""
    present = [name for name in columns if name in parquet.schema_arrow.names]
    row_number = 0
    with _readable(path, key):
        for batch in parquet.iter_batches(batch_size=_ROWS_PER_BATCH, columns=present):
            for row in batch.to_pylist():
                yield row_number, {name: row.get(name) for name in columns}
                row_number += 1


def require_columns(parquet: pq.ParquetFile, wanted: Sequence[str], *, path: str, fix: str) -> None:
    """Raises FileError, naming what is missing and what is there, unless all `wanted` are there."""
    present = parquet.schema_arrow.names
    if missing := [name for name in wanted if name not in present]:
        raise FileError(f"{path}: missing columns {missing}, has {present}; {fix}")


@contextmanager
def _readable(path: str | Path, key: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise FileError(
            f"{key}: cannot read {path} as parquet: {reason}; {_FETCH_AGAIN}"
        ) from error
