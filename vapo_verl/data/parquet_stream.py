"""Parquet files of rows: the schema that importers write, and a reader row by row."""

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vapo_verl.data.cells import IMAGE_PLACEHOLDER
from vapo_verl.data.errors import FileError
from vapo_verl.files import atomic_write

_ROWS_PER_BATCH = 32
_BUFFER_BYTES = 1 << 20
_MAGIC = b"PAR1"
JSON_LINES = (".jsonl", ".ndjson")
"""How the names of files of JSON lines end."""
_READERS = {
    ".csv": "read_csv(FILE, dtype=str, keep_default_na=False)",
    ".tsv": "read_csv(FILE, sep='\\t', dtype=str, keep_default_na=False)",
    ".arrow": "read_feather(FILE)",
}
"""Suffix -> pandas call that reads the file. Text stays: `007`, `1.50` and `None` are answers."""
_FETCH_AGAIN = "download it again (a Git LFS pointer or a web page saved in its place looks so)"
_TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_CLAIM = pa.struct([("text", pa.string()), ("label", pa.bool_())])
_REWARD_MODEL = pa.struct([("style", pa.string()), ("ground_truth", pa.string())])
_EXTRA_INFO = pa.struct([("split", pa.string()), ("index", pa.int64()), ("source_id", pa.string())])
PROMPT_SUFFIX = (
    "Look at the image and think the question through inside <think> </think>. "
    "Then state only the final answer inside \\boxed{}."
)
"""Asks for the format that the format reward checks."""


def open_parquet(path: str | Path, *, key: str) -> pq.ParquetFile:
    """Open a parquet file of at least one row.

    Args:
        key: where the path was given (`data.train_files`), for the messages.

    Raises:
        FileError: no such file, a name veRL would refuse, not parquet, without rows, or with two
            columns of one name.
    """
    path = existing_file(path, key=key)
    if path.suffix != ".parquet":
        raise FileError(f"{key}: {_why_not_parquet(path)}")
    with _readable(path, key):
        # pre_buffer, pyarrow's default, reads ahead and keeps the whole file in memory
        parquet = pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    names = parquet.schema_arrow.names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise FileError(f"{key}: {path} has several columns named {twice}; rename or drop them")
    if parquet.metadata.num_rows == 0:
        raise FileError(f"{key}: {path} has no rows; make it again, or leave it out")
    return parquet


def existing_file(path: str | Path, *, key: str) -> Path:
    """The path, `~` expanded; raises FileError unless there is a file of one byte or more."""
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        what = "is a directory, not a file" if path.is_dir() else "does not exist"
        kind = "JSON lines" if path.suffix.lower() in JSON_LINES else "parquet"
        raise FileError(f"{key}: {path} {what}; give the path of a {kind} file")
    if not path.stat().st_size:
        raise FileError(f"{key}: {path} is empty, 0 bytes; download or make it again")
    return path


def iter_rows(
    parquet: pq.ParquetFile, columns: Sequence[str], *, path: str | Path, key: str
) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (row number from 0, row), each row with all of `columns`: absent ones are null."""
    present = [name for name in columns if name in parquet.schema_arrow.names]
    row_number = 0
    with _readable(path, key):
        for batch in parquet.iter_batches(batch_size=_ROWS_PER_BATCH, columns=present):
            for row in plain_rows(batch):
                yield row_number, {name: row.get(name) for name in columns}
                row_number += 1


class Unreadable:
    """A cell without a value in Python, such as text that is not UTF-8: every check refuses it."""

    def __init__(self, reason: Exception) -> None:
        self._reason = reason

    def __repr__(self) -> str:
        return f"unreadable, {self._reason}"


def plain_rows(batch: pa.RecordBatch) -> list[dict[str, object]]:
    """The rows with values of Python; cells without one are `Unreadable`."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):  # a UnicodeDecodeError is a ValueError
        names = batch.schema.names
        return [{name: _cell(batch[name], row) for name in names} for row in range(len(batch))]


def _cell(column: pa.Array, row: int) -> object:
    try:
        return column[row].as_py()
    except (ValueError, OverflowError) as error:
        return Unreadable(error)


def kept_rows(table: pa.Table, is_kept: np.ndarray) -> pa.Table:
    """The rows for which `is_kept` [rows] is true; unlike `filter`, of columns of any type."""
    edges = np.flatnonzero(np.diff(is_kept.astype(np.int8), prepend=0, append=0))
    runs = [table.slice(first, end - first) for first, end in edges.reshape(-1, 2).tolist()]
    return pa.concat_tables(runs) if runs else table.slice(0, 0)


def require_columns(parquet: pq.ParquetFile, wanted: Sequence[str], *, path: str, fix: str) -> None:
    """Raises FileError, naming missing and present columns, unless all `wanted` are present."""
    require_names(parquet.schema_arrow.names, wanted, path=path, fix=fix)


def require_names(present: Sequence[str], wanted: Sequence[str], *, path: str, fix: str) -> None:
    """:func:`require_columns` for a file with the columns `present`."""
    if missing := [name for name in wanted if name not in present]:
        raise FileError(f"{path}: missing columns {missing}, has {present}; {fix}")


@contextmanager
def writing_parquet(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Write beside `path`, and move there on success; on any error leave `path` as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        yield writer


def _why_not_parquet(path: Path) -> str:
    """What is wrong with a file of another suffix, and what to do."""
    with path.open("rb") as file:
        is_parquet = file.read(4) == _MAGIC
    if is_parquet:
        return f"{path} does not end in .parquet, and veRL goes by that; rename it"
    source, suffix = Path(os.path.abspath(path)), path.suffix.lower()
    found = f"{path} is no parquet file, and training rows are read from parquet only"
    if suffix in JSON_LINES:
        return f"{found}; import it: {_import_command(source)}"
    if suffix == ".json":
        lines = source.with_suffix(JSON_LINES[0])
        if _holds_lines(path):
            fix = f"it holds JSON lines: rename it to {lines.name} and import it"
            return f"{found}; {fix}: {_import_command(lines)}"
        code = (  # numbers such as 1.50 stay as they are written
            f"import json; open({str(lines)!r}, 'w').writelines(json.dumps(row) + '\\n' "
            f"for row in json.load(open({str(source)!r}, 'rb'), parse_float=str))"
        )
        return f"{found}; convert it: {_python(code)} && {_import_command(lines)}"
    if suffix not in _READERS:
        return f"{path} is no parquet file; give one that ends in .parquet"
    read = _READERS[suffix].replace("FILE", repr(str(source)))
    code = f"import pandas; pandas.{read}.to_parquet({str(source.with_suffix('.parquet'))!r})"
    return f"{found}; convert it: {_python(code)}"


def _holds_lines(path: Path) -> bool:
    """Whether the first line of a file is a JSON object; that of an array is not."""
    with path.open("rb") as file:
        is_object = file.read(4).lstrip(b"\xef\xbb\xbf")[:1] == b"{"  # behind a byte-order mark
        file.seek(0)
        try:
            return is_object and isinstance(json.loads(file.readline()), dict)
        except (ValueError, RecursionError):
            return False


def _python(code: str) -> str:
    """A shell command that runs the code."""
    quoted = re.sub(r'([\\"$`])', r"\\\1", code)  # what a shell reads inside double quotes
    return f'python -c "{quoted}"'


def _import_command(lines: Path) -> str:
    words = ["python", "-m", "vapo_verl.data", "import-plain", str(lines), "--out"]
    words += [str(lines.with_suffix(".parquet")), "--data-source", lines.stem]
    return shlex.join([*words, "--image-root", str(lines.parent)])


@contextmanager
def _readable(path: str | Path, key: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise FileError(
            f"{key}: cannot read {path} as parquet: {reason}; {_FETCH_AGAIN}"
        ) from error


def row_schema(*, embedded_images: bool) -> pa.Schema:
    """Columns of a data file; images are structs with bytes if embedded, else paths.

    Files of the two kinds cannot be loaded as one data set.
    """
    return pa.schema(
        [
            ("prompt", pa.list_(_TURN)),
            ("images", pa.list_(_IMAGE if embedded_images else pa.string())),
            ("data_source", pa.string()),
            ("reward_model", _REWARD_MODEL),
            ("extra_info", _EXTRA_INFO),
            ("claims", pa.list_(_CLAIM)),
        ]
    )


def build_prompt(question: str, num_images: int) -> list[dict[str, str]]:
    """One user turn: the question, a placeholder per image in front if it has none, the suffix.

    Placeholders in the question stay where they are.
    """
    question = question.strip()
    if IMAGE_PLACEHOLDER not in question:
        question = IMAGE_PLACEHOLDER * num_images + question
    return [{"role": "user", "content": f"{question}\n{PROMPT_SUFFIX}"}]
