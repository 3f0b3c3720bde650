"""Importer of question-answer sets without claims: ViRL39K, geometry3k, and files of your own.

The question is in `question` (ViRL39K) or `problem` (geometry3k), the answer in `answer`, and the
images in `image` or `images`: relative paths under an image root, or structs with bytes. One image
may stand outside a list. Importers of sets with claims read these parts of a row in the same way.

A row is a row of a parquet file or a line of a `.jsonl`. Numbers in a line are kept as written,
`1.50` or 23 digits, so that the ground truth is what the file says.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vapo_verl.data.cells import IMAGE_PLACEHOLDER, truths_of
from vapo_verl.data.claims_column import Claim
from vapo_verl.data.errors import BadCell, FileError, shortened, shown
from vapo_verl.data.parquet_stream import JSON_LINES, existing_file, iter_rows, open_parquet

KEY = "SRC"
"""Where sources are given, for messages."""
_ID_COLUMNS = ("qid", "id", "problem_id", "pid")
_BOX = "\\boxed{"
_DROP = "drop the row, or pass --skip-bad-rows"
_ONE_ANSWER = (
    "an import writes one; write rows of the format yourself, with a list in "
    "reward_model.ground_truth, or pass --skip-bad-rows"
)
_QUESTION_COLUMNS = ("question", "problem")
_IMAGE_COLUMNS = ("image", "images")
LINE = "line"
"""The only field of a row of JSON lines that is not parsed yet: its bytes."""
_MAX_LINE_BYTES = 1 << 28
_BOM = b"\xef\xbb\xbf"
_ONE_OBJECT = 'write one JSON object a line, as {"question": ..., "answer": ..., "image": ...}'
_DEEP = "nested too deeply"
_AS_UTF8 = "save the file as UTF-8"
_ONE_NAME = "use one name in all rows, or drop the other column"
_AS_TEXT = "write it as text, in UTF-8, or pass --skip-bad-rows"
_AS_ID = "write ids as text or whole numbers, rename the column, or pass --skip-bad-rows"
_PAIRED = "write both halves of the surrogate pair, or the character itself"


class WrittenNumber(str):
    """A number of a line, as it is written: an answer or an id, but no text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """What an importer reads from one row."""

    question: str
    answer: str
    images: tuple[object, ...]
    """Entries as the source has them: paths, or structs with bytes or a path."""
    source_id: str | None = None
    """The source's own name for the row."""
    claims: tuple[Claim, ...] = ()
    num_blank_claims: int = 0
    """Claims without text, left out together with their labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReader:
    """How to read the rows of one source file, determined by its columns."""

    columns: tuple[str, ...]
    image_column: str
    read: Callable[[Mapping[str, object]], SourceRow]
    """Raises BadCell on a row that cannot be used."""


def read_basics(row: Mapping[str, object], *, question: str, images: str) -> SourceRow:
    """A row without its claims, from the named columns and from `answer` and an id column.

    Raises:
        BadCell: no question, no answer, a question that is no text, an id that is no text or whole
            number, a question with placeholders whose number is not that of the images, or a value
            under the other of two names for a column.
    """
    for used, names in ((question, _QUESTION_COLUMNS), (images, _IMAGE_COLUMNS)):
        for name in names:
            if name != used and row.get(name) is not None:
                raise BadCell(name, f"other rows call it '{used}'", _ONE_NAME)
    text, entries = _question(row, question), _as_entries(row[images])
    num_placeholders = text.count(IMAGE_PLACEHOLDER)
    if num_placeholders not in (0, len(entries)):
        raise BadCell(question, f"{num_placeholders} <image> for {len(entries)} images", _DROP)
    ids = [_id(row, name) for name in _ID_COLUMNS if row.get(name) is not None]
    return SourceRow(
        question=text,
        answer=_answer(row["answer"]),
        images=entries,
        source_id=ids[0] if ids else None,
    )


def basic_columns(present: list[str], *, question: str, images: str) -> tuple[str, ...]:
    """Columns of a file that :func:`read_basics` reads."""
    named = (question, "answer", images)
    optional = (*_ID_COLUMNS, *_QUESTION_COLUMNS, *_IMAGE_COLUMNS)
    return (*named, *(name for name in optional if name in present and name not in named))


def unbox(answer: str) -> str:
    r"""`\boxed{4}` as `4`: the ground truth is compared with the content of the box.

    Left alone unless the box encloses all of the answer: `\boxed{1}, \boxed{2}` stays.
    """
    if not (answer.startswith(_BOX) and answer.endswith("}")):
        return answer
    inside, depth = answer[len(_BOX) : -1], 0
    for character in inside:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return answer
    return inside.strip() or answer


def read_text(row: Mapping[str, object], column: str) -> str:
    """The stripped text of a cell, empty for null; raises BadCell for a cell that is no text."""
    cell = row[column]
    if cell is None:
        return ""
    if isinstance(cell, WrittenNumber):
        raise BadCell(column, f"no text: the number {shortened(cell)}", _AS_TEXT)
    if not isinstance(cell, str):
        raise BadCell(column, f"no text: {shown(cell)}", _AS_TEXT)
    return cell.strip()


def _question(row: Mapping[str, object], column: str) -> str:
    text = read_text(row, column)
    if not text.replace(IMAGE_PLACEHOLDER, "").strip():
        raise BadCell(column, f"nothing asked or answered: {shown(row[column])}", _DROP)
    return text


def _id(row: Mapping[str, object], column: str) -> str:
    cell = row[column]
    if isinstance(cell, bool) or not isinstance(cell, str | int):
        raise BadCell(column, f"no id: {shown(cell)}", _AS_ID)
    return str(cell)


def _answer(cell: object) -> str:
    """The one answer of a row, out of its box."""
    try:
        truths = truths_of({"ground_truth": cell})
    except BadCell as problem:
        raise BadCell("answer", f"nothing that can be compared: {shown(cell)}", _DROP) from problem
    if len(truths) > 1:
        raise BadCell("answer", f"{len(truths)} answers: {shown(cell)}", _ONE_ANSWER)
    return unbox(truths[0].strip())


def _as_entries(cell: object) -> tuple[object, ...]:
    if cell is None:
        return ()
    return tuple(cell) if isinstance(cell, list) else (cell,)


def plain_reader(path: str | Path, present: list[str]) -> RowReader:
    """How to read a file with these columns.

    Raises:
        FileError: no question or no image column.
    """
    question = _name_of(_QUESTION_COLUMNS, present, path)
    images = _name_of(_IMAGE_COLUMNS, present, path)
    return RowReader(
        columns=basic_columns(present, question=question, images=images),
        image_column=images,
        read=partial(read_basics, question=question, images=images),
    )


def _name_of(names: tuple[str, ...], present: list[str], path: str | Path) -> str:
    """The first of the names that is a column; of several, the first that has a value."""
    found = [name for name in names if name in present]
    if not found:
        wanted = " or ".join(names)
        fix = "rename the column that holds it"
        raise FileError(f"{path}: no column {wanted}, has {present}; {fix}")
    if len(found) == 1:
        return found[0]
    return next((name for name in found if _has_value(Path(path), name)), found[0])


def _has_value(path: Path, column: str) -> bool:
    """Whether a row has more than null in the column; reads to the first such row."""
    if not is_json_lines(path):
        with open_parquet(path, key=KEY) as parquet:
            rows = iter_rows(parquet, [column], path=path, key=KEY)
            return any(row[column] is not None for _, row in rows)
    for _, row in iter_lines(path):
        with suppress(BadCell):  # reported when the rows are read
            if _parsed(row[LINE]).get(column) is not None:
                return True
    return False


def is_json_lines(path: Path) -> bool:
    """Whether a file is JSON lines, by its name."""
    return path.suffix.lower() in JSON_LINES


def iter_lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line number from 1, {LINE: its bytes}) of every line that is not blank.

    Raises:
        FileError: a line of more than 256 MiB.
    """
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES + 1), b""), 1):
            if len(line) > _MAX_LINE_BYTES:
                found = f"line {number} has over {_MAX_LINE_BYTES >> 20} MiB"
                raise FileError(f"{path} {found}; {_ONE_OBJECT}")
            line = line.removeprefix(_BOM) if number == 1 else line
            if line.strip():
                yield number, {LINE: line.rstrip()}


def survey_lines(path: Path, *, key: str) -> tuple[int, list[str]]:
    """The number of rows of a JSON lines file, and the columns that any of them has.

    Lines that are not JSON objects count as rows: reading them later reports the problem.

    Raises:
        FileError: no such file, an empty one, or not one JSON object in it; with the first reason.
    """
    num_rows, columns, reason = 0, dict[str, None](), ""
    for number, row in iter_lines(existing_file(path, key=key)):
        num_rows += 1
        try:
            columns |= dict.fromkeys(_parsed(row[LINE]))
        except BadCell as problem:
            reason = reason or f"line {number}, {problem.found}; {problem.fix}"
    if not num_rows:
        raise FileError(f"{key}: {path} has no rows; make it again, or leave it out")
    if not columns:
        raise FileError(f"{key}: {path} has no row with a column: {reason or _ONE_OBJECT}")
    return num_rows, list(columns)


def reader_of_lines(reader: RowReader) -> RowReader:
    """The same reader for rows from :func:`iter_lines`."""

    def read(row: Mapping[str, object]) -> SourceRow:
        try:
            return reader.read(_cells(row[LINE], reader.columns))
        except RecursionError as error:
            raise BadCell("", _DEEP, _ONE_OBJECT) from error

    return dataclasses.replace(reader, read=read)


def _cells(line: object, columns: Sequence[str]) -> dict[str, object]:
    """The cells of a line, null where it has none.

    Raises:
        BadCell: the line is no JSON object, or a text cannot be written as UTF-8.
    """
    found = _parsed(line)
    row = {name: found.get(name) for name in columns}
    for name, cell in row.items():
        try:
            json.dumps(cell, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise BadCell(name, f"half of a surrogate pair in {shown(cell)}", _PAIRED) from error
    return row | {"answer": _as_written(row["answer"])}


def _parsed(line: object) -> dict[str, object]:
    assert isinstance(line, bytes)
    try:
        # nan stays a float, which is refused as an answer
        row = json.loads(
            line.decode(),
            parse_int=WrittenNumber,
            parse_float=WrittenNumber,
            parse_constant=float,
        )
    except UnicodeDecodeError as error:
        raise BadCell("", f"no UTF-8 at byte {error.start + 1}", _AS_UTF8) from error
    except json.JSONDecodeError as error:
        found = f"no JSON at character {error.pos + 1}: {error.msg.removesuffix(' at')}"
        raise BadCell("", found, _ONE_OBJECT) from error
    except RecursionError as error:
        raise BadCell("", _DEEP, _ONE_OBJECT) from error
    if not isinstance(row, dict):
        raise BadCell("", f"the line is {shown(row)}", _ONE_OBJECT)
    return row


def _as_written(answer: object) -> object:
    """The answer with its bools as JSON text; numbers are text already."""
    if isinstance(answer, list):
        return [json.dumps(each) if isinstance(each, bool) else each for each in answer]
    return json.dumps(answer) if isinstance(answer, bool) else answer
