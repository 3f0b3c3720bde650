"""Runs an import: source files through a reader into our row format, a few rows at a time."""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from vapo_verl.console import progress_bar
from vapo_verl.data.cells import RowRules, check_row
from vapo_verl.data.errors import (
    BadCell,
    DataError,
    FileError,
    ProblemLog,
    require_other_file,
    require_output,
    shown,
)
from vapo_verl.data.images import image_source, is_remote, local_path
from vapo_verl.data.importers.plain import (
    KEY,
    RowReader,
    SourceRow,
    is_json_lines,
    iter_lines,
    reader_of_lines,
    survey_lines,
)
from vapo_verl.data.parquet_stream import (
    build_prompt,
    iter_rows,
    open_parquet,
    require_columns,
    require_names,
    row_schema,
    writing_parquet,
)

_ROWS_PER_GROUP = 64
"""Rows held in memory before they are written: with images, some ten megabytes."""
_HASH_BYTES = 8
_FIX = "choose the importer that fits the file, or rename its columns"
ReaderFactory = Callable[[Path, list[str]], RowReader]
"""Makes the reader of a file from its path and column names; raises FileError."""
_RULES = RowRules(refuse_controls=False)
_LONGEST_PATH = 4096
_AS_URI = "write an encoded image as data:image/png;base64,..."
_BARE_URI = "write the data URI outside a struct, or import with --embed-images"
_SET_ROOT = "give the folder that the paths start from as --image-root"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """Settings common to all importers."""

    out: Path
    """Parquet file to write; it appears only when the import is complete."""
    data_source: str
    """Name of the data set; metrics are split by it."""
    split: str = "train"
    """Recorded in extra_info.split; rows held out get "val"."""
    image_root: Path = Path()
    """Folder that relative image paths start from."""
    embed_images: bool = False
    """Write the files' bytes instead of absolute paths; sources that hold bytes keep them."""
    limit: int | None = None
    """Read at most this many source rows."""
    val_out: Path | None = None
    """File for held-out rows."""
    val_fraction: float = 0.0
    """Fraction of rows held out into `val_out`; rows that share an image stay together."""
    seed: int = 0
    """Selects the held-out rows."""
    skip_bad_rows: bool = False
    """Leave out and count rows that cannot be used, instead of refusing the import."""

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise DataError(f"--val-fraction: {self.val_fraction} is outside [0, 1); try 0.02")
        if (self.val_fraction > 0) != (self.val_out is not None):
            given = f"{self.val_fraction} and {self.val_out}"
            raise DataError(f"--val-fraction and --val-out: {given}; give both or none")
        if self.val_out is not None and self.val_out.resolve() == self.out.resolve():
            raise DataError(f"--val-out: {self.val_out} is also --out; give another path")
        if self.val_out is not None and self.split == "val":
            raise DataError("--split: val is for the held-out rows; name the others differently")
        if self.limit is not None and self.limit < 1:
            raise DataError(f"--limit: {self.limit}; give at least 1")
        require_output(self.out, suffix=".parquet")
        if self.val_out is not None:
            require_output(self.val_out, "--val-out", suffix=".parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """Counts of an import; `str()` is one line."""

    out: Path
    num_rows: int
    """Rows written to `out`."""
    num_val_rows: int
    num_claims: int
    num_blank_claims: int
    """Claims without text, dropped with their labels."""
    num_bad_rows: int
    """Rows left out under --skip-bad-rows."""

    def __str__(self) -> str:
        return (
            f"{self.out}: {self.num_rows} rows written, {self.num_val_rows} held out,"
            f" {self.num_bad_rows} bad rows skipped;"
            f" {self.num_claims} claims, {self.num_blank_claims} blank ones dropped"
        )


def import_rows(
    paths: Sequence[Path], make_reader: ReaderFactory, options: ImportOptions
) -> ImportReport:
    """Write the rows of all source files to `options.out` (and `options.val_out`).

    `extra_info.index` numbers the rows of all sources together, bad ones included, so that a row
    keeps its index whatever is skipped or held out.

    Raises:
        FileError: a source that is missing or lacks columns; or nothing to write.
        RowError: rows that cannot be used, unless `options.skip_bad_rows`. Nothing is written.
    """
    for path in paths:
        require_other_file(options.out, path)
        if options.val_out is not None:
            require_other_file(options.val_out, path, "--val-out")
    sources = [open_source(path, make_reader) for path in paths]
    embed = options.embed_images or not all(source.holds_paths for source in sources)
    count: Counter[str] = Counter()
    num_rows = min(sum(source.num_rows for source in sources), options.limit or sys.maxsize)
    groups = ImageGroups()
    if options.val_fraction:
        with progress_bar(num_rows, unit="row") as progress:
            groups = groups_of(sources, options, progress)
    with progress_bar(num_rows, unit="row") as progress:
        rows = _converted(sources, embed, options, groups, count, progress)
        _write(rows, embed, options, count)
    return ImportReport(
        out=options.out,
        num_rows=count["train"],
        num_val_rows=count["val"],
        num_claims=count["claims"],
        num_blank_claims=count["blank_claims"],
        num_bad_rows=count["bad_rows"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One source file and how to read it."""

    path: Path
    num_rows: int
    reader: RowReader
    holds_paths: bool
    """Its images are paths, not structs with bytes."""
    unit: str = "row"
    """`line` of JSON lines: what is counted, from 1, where parquet rows are counted from 0."""


def _converted(
    sources: Sequence[Source],
    embed: bool,
    options: ImportOptions,
    groups: "ImageGroups",
    count: Counter[str],
    progress: "tqdm[Any]",
) -> Iterator[dict[str, object]]:
    """Yield the usable rows; after the last one, raise RowError for the others unless skipped."""
    log = ProblemLog()
    raw_rows = islice(iter_sources(sources), options.limit)
    for index, (source, number, raw) in enumerate(raw_rows):
        place = f"{source.path.stem}:{number}"
        progress.update()
        try:
            row = source.reader.read(raw)
            held_out = is_held_out(row, groups, options)
            built = build_row(
                row, index=index, place=place, embed=embed, held_out=held_out, options=options
            )
        except BadCell as bad_cell:
            log.add(bad_cell.at(number, source.unit), str(source.path))
            count["bad_rows"] += 1
            continue
        count.update(claims=len(row.claims), blank_claims=row.num_blank_claims)
        yield built
    if not options.skip_bad_rows:
        log.raise_if_any()


def _write(
    rows: Iterator[dict[str, Any]], embed: bool, options: ImportOptions, count: Counter[str]
) -> None:
    schema = row_schema(embedded_images=embed)
    outputs = {"train": options.out}
    if options.val_out is not None:
        outputs["val"] = options.val_out
    with ExitStack() as stack:
        files = {
            side: stack.enter_context(atomic_parquet(outputs[side], schema)) for side in outputs
        }
        for row in rows:
            side = "val" if "val" in files and row["extra_info"]["split"] == "val" else "train"
            files[side].add(row)
            count[side] += 1
        if empty := [str(outputs[side]) for side in outputs if not count[side]]:
            raise FileError(f"no rows for {empty}; check the sources, --limit and --val-fraction")


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
    with writing_parquet(path, schema) as writer:
        rows = RowWriter(writer)
        yield rows
        rows.flush()


def open_source(path: Path, make_reader: ReaderFactory) -> Source:
    """Raises FileError when the file cannot be read or lacks columns."""
    if is_json_lines(path):
        num_rows, present = survey_lines(path, key=KEY)
        reader = make_reader(path, present)
        require_names(present, reader.columns, path=str(path), fix=_FIX)
        lines = reader_of_lines(reader)
        return Source(path=path, num_rows=num_rows, reader=lines, holds_paths=True, unit="line")
    with open_parquet(path, key=KEY) as parquet:
        schema = parquet.schema_arrow
        reader = make_reader(path, schema.names)
        require_columns(parquet, reader.columns, path=str(path), fix=_FIX)
        images = schema.field(reader.image_column).type
        num_rows = parquet.metadata.num_rows
    return Source(path=path, num_rows=num_rows, reader=reader, holds_paths=holds_paths(images))


def iter_sources(sources: Sequence[Source]) -> Iterator[tuple[Source, int, dict[str, object]]]:
    """Yield (source, row or line number in it, raw row) over all sources in turn."""
    for source in sources:
        if is_json_lines(source.path):
            yield from ((source, number, row) for number, row in iter_lines(source.path))
            continue
        with open_parquet(source.path, key=KEY) as parquet:
            rows = iter_rows(parquet, source.reader.columns, path=source.path, key=KEY)
            for number, row in rows:
                yield source, number, row


def build_row(
    row: SourceRow,
    *,
    index: int,
    place: str,
    embed: bool,
    held_out: bool,
    options: ImportOptions,
) -> dict[str, object]:
    """The row as `parquet_stream.row_schema` has it.

    Args:
        index: number of the row among those of all sources.
        place: the id of a row whose source has none.
        embed: write the bytes of image files.
        held_out: `extra_info.split` is "val".

    Raises:
        BadCell: an image is missing or cannot be embedded, or the row cannot be trained on.
            Control tokens stay: a run refuses them, or encodes them as text.
    """
    root = options.image_root
    built = {
        "prompt": build_prompt(row.question, len(row.images)),
        "images": [as_written(entry, image_root=root, embed=embed) for entry in row.images],
        "data_source": options.data_source,
        "reward_model": {"style": "rule", "ground_truth": row.answer},
        "extra_info": {
            "split": "val" if held_out else options.split,
            "index": index,
            "source_id": row.source_id or place,
        },
        "claims": [claim.as_dict() for claim in row.claims],
    }
    check_row(built, _RULES)
    return built


class ImageGroups:
    """Images that rows with several of them tie together, directly or through other such rows.

    A disjoint-set forest over hashes of the images; images of rows with one image take no memory.
    """

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def tie(self, images: Sequence[bytes | str]) -> None:
        """Put the images of a row into one group."""
        roots = sorted({self._root(_hash(image)) for image in images})
        for root in roots:
            self._parent[root] = roots[0]

    def group_of(self, image: bytes | str) -> int | None:
        """The smallest hash of the image's group, which no order of rows changes; None if no row
        ties the image."""
        number = _hash(image)
        return self._root(number) if number in self._parent else None

    def _root(self, number: int) -> int:
        while (parent := self._parent.get(number, number)) != number:
            self._parent[number] = self._parent[parent]
            number = parent
        return number


def groups_of(
    sources: Sequence[Source], options: ImportOptions, progress: "tqdm[Any]"
) -> ImageGroups:
    """The groups of all sources; rows that cannot be used tie nothing."""
    groups = ImageGroups()
    for source, _, raw in islice(iter_sources(sources), options.limit):
        progress.update()
        with suppress(BadCell):
            images = source.reader.read(raw).images
            if len(images) > 1:
                groups.tie([image_id(image, options.image_root) for image in images])
    return groups


def image_id(entry: object, image_root: Path) -> bytes | str:
    """What an image is known by: its bytes, its address, or the path of its file from the root.

    Other spellings of the path, and links, give the same one; moving the folder does not change it.
    """
    source = image_source(entry)
    if isinstance(source, bytes) or is_remote(source) or len(source) > _LONGEST_PATH:
        return source
    path = os.path.realpath(image_root / local_path(source))
    return os.path.relpath(path, os.path.realpath(image_root))


def is_held_out(row: SourceRow, groups: ImageGroups, options: ImportOptions) -> bool:
    """Draw by the seed and a hash: of the row's image; of the group of its images, if it has
    several or shares its image with such a row; of its question, if it has none.

    All questions on one image fall to the same side, whatever the order of the rows.
    """
    if options.val_fraction == 0:
        return False
    first = image_id(row.images[0], options.image_root) if row.images else row.question
    group = groups.group_of(first) if row.images else None
    content = _bytes(first) if group is None else group.to_bytes(_HASH_BYTES, "big")
    draw = _hash(f"{options.seed}:".encode() + content)
    return draw < options.val_fraction * 2 ** (8 * _HASH_BYTES)


def _bytes(content: bytes | str) -> bytes:
    return content if isinstance(content, bytes) else content.encode(errors="surrogateescape")


def _hash(content: bytes | str) -> int:
    digest = hashlib.blake2b(_bytes(content), digest_size=_HASH_BYTES).digest()
    return int.from_bytes(digest, "big")


def holds_paths(column: pa.DataType) -> bool:
    """Whether a source's image column is of paths (one or a list), not of structs with bytes."""
    if pa.types.is_list(column) or pa.types.is_large_list(column):
        column = column.value_type
    return pa.types.is_string(column) or pa.types.is_large_string(column)


def as_written(entry: object, *, image_root: Path, embed: bool) -> object:
    """The entry for our `images` column: a struct with bytes if `embed`, else an absolute path.

    Addresses are kept as they are where paths are written; they cannot be embedded.

    Raises:
        BadCell: the file is missing, the entry names no image, an address is to be embedded, or
            bytes are to be written as a path.
    """
    source = image_source(entry)
    if isinstance(entry, str) and isinstance(source, bytes) and not embed:
        return entry  # a data URI
    if isinstance(source, bytes):
        if not embed:
            raise BadCell("images", f"an image is {shown(entry)}", _BARE_URI)
        path = entry.get("path") if isinstance(entry, dict) else None
        return {"bytes": source, "path": path}
    if is_remote(source):
        if embed:
            raise BadCell("images", f"cannot embed {source!r}", "download it and give its path")
        return source
    if len(source) > _LONGEST_PATH:
        raise BadCell("images", f"a path of {len(source)} characters", _AS_URI)
    path = Path(os.path.abspath(image_root / local_path(source)))
    if not os.path.isfile(path):  # Path.is_file raises OSError for a name that is too long
        raise BadCell("images", f"no file {str(path)!r}", _SET_ROOT)
    return {"bytes": path.read_bytes(), "path": path.name} if embed else str(path)
