"""The source files of an import, opened far enough to know how to read them, then streamed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vapo_verl.data.importers.image_entries import holds_paths
from vapo_verl.data.importers.source_row import RowReader
from vapo_verl.data.parquet_stream import iter_rows, open_parquet, require_columns

_KEY = "SRC"
_FIX = "choose the importer that fits the file, or rename its columns"

ReaderFactory = Callable[[Path, list[str]], RowReader]
"""Settles from a file's path and column names how its rows are read; raises FileError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One source file and how to read it."""

    path: Path
    reader: RowReader
    holds_paths: bool
    """Its images are paths, not structs with bytes."""


def open_source(path: Path, make_reader: ReaderFactory) -> Source:
    """Raises FileError when the file cannot be read or lacks columns."""
    with open_parquet(path, key=_KEY) as parquet:
        schema = parquet.schema_arrow
        reader = make_reader(path, schema.names)
        require_columns(parquet, reader.columns, path=str(path), fix=_FIX)
        images = schema.field(reader.image_column).type
    return Source(path=path, reader=reader, holds_paths=holds_paths(images))


def iter_sources(sources: Sequence[Source]) -> Iterator[tuple[Source, int, dict[str, object]]]:
    """Yield (source, row number in it, row as it stands there) over all sources in turn."""
    for source in sources:
        with open_parquet(source.path, key=_KEY) as parquet:
            rows = iter_rows(parquet, source.reader.columns, path=source.path, key=_KEY)
            for number, row in rows:
                yield source, number, row
