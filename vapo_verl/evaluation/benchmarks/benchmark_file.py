"""Reads files of benchmarks: a TSV of VLMEvalKit, a parquet file of our rows, stored predictions.

All rows are checked while they are read, so that a bad file gives a list of rows, columns and fixes
before an engine starts. Images are decoded once, by :func:`vapo_verl.data.images.load_image`.
"""

import base64
import csv
import difflib
import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vapo_verl.data.cells import (
    IMAGE_PLACEHOLDER,
    RowRules,
    check_images_match,
    row_problems,
    truths_of,
)
from vapo_verl.data.errors import BadCell, FileError, ProblemLog, shown
from vapo_verl.data.images import (
    ImageEntry,
    check_image,
    image_source,
    is_data_uri,
    sized_image,
)
from vapo_verl.data.parquet_stream import iter_rows, open_parquet
from vapo_verl.data.rows import OPTIONAL_COLUMNS, REQUIRED_COLUMNS
from vapo_verl.evaluation.benchmarks import BenchmarkRow
from vapo_verl.evaluation.benchmarks.rules.extraction import literal_list

Cells = Mapping[str, str]
KEY = "DATA"
REFERENCE_LENGTH = 64
"""An image cell of at most this many characters names another row: VLMEvalKit's limit."""
_QUESTION_COLUMNS = ("index", "question", "answer")
_IMAGE_COLUMNS = ("image", "image_path")
_USUAL = {*_QUESTION_COLUMNS, *_IMAGE_COLUMNS, "hint", "category", "l2-category", "split"}
_OPTIONS = tuple(string.ascii_uppercase)
_NO_LIST = ("", "None", "nan", "[]")
_CELL_LIMIT = 2**31 - 1
_INTEGER = re.compile(r"[+-]?\d{1,18}(?:\.0+)?", re.ASCII)
_RULES = RowRules(refuse_controls=False)
"""Control tokens depend on the model: the command checks them once the model is known."""
_UNIQUE = "give every row an index of its own, or drop the row"
_NO_IMAGE = "fill in the image, or drop the row"
_REPLACE = "write base64 of a PNG or JPEG file, a list of such strings, or another row's index"


def read_benchmark(path: Path, *, skip_without_image: bool = False) -> list[BenchmarkRow]:
    """All rows of a benchmark in the file's order: of a `.tsv`, or of a `.parquet` of our format.

    Columns of a TSV, as VLMEvalKit writes it: `index`, `question`, `answer`; `image` (base64, the
    index of another row, or a list literal of base64 strings), or `image_path` (a path or a list
    literal of paths; a relative one starts at the file's folder, or in `images/NAME` there); and
    `A` .. `Z`, `choices` (a list literal of options), `hint`, `category`, `l2-category`, `split`.

    Args:
        skip_without_image: leave out rows without an image; an error otherwise. See
            `Rule.skip_without_image`.

    Raises:
        FileError: no such file, another format, or a missing column.
        RowError: bad cells, images that are missing or damaged, and indices that are not unique;
            one line each, with row (from 0, header aside), column and fix.
    """
    if path.suffix == ".parquet":
        return _read_our_parquet(path)
    if path.suffix != ".tsv":
        raise FileError(
            f"{KEY}: {path} is neither .tsv nor .parquet; give a TSV as VLMEvalKit writes it, or "
            "a parquet file of the row format"
        )
    header, table = _read_separated(path)
    _require(path, header, (*_QUESTION_COLUMNS,))
    if not set(header) & set(_IMAGE_COLUMNS):
        _require(path, header, ("image",))
    log = ProblemLog()
    rows = []
    images = _ImageCells(path, table)
    indices = _indices(path, [cells["index"] for cells in table], log)
    for number, (index, cells) in enumerate(zip(indices, table, strict=True)):
        try:
            sources = images.of(cells)
            if not sources and skip_without_image:
                continue
            if not sources:
                column = "image" if "image" in header else "image_path"
                raise BadCell(column, f"index {cells['index']!r} has no image", _NO_IMAGE)
            rows.append(_row(number, index, cells, sources))
        except BadCell as problem:
            log.add(problem.at(number), str(path))
    log.raise_if_any()
    if not rows:
        raise FileError(f"{KEY}: {path} has no rows with an image; give another file")
    return rows


def read_predictions(path: Path, needs: Sequence[str] = ()) -> tuple[list[BenchmarkRow], list[str]]:
    """Rows without images, and what a model answered to each; a blank prediction is an empty text.

    Formats, by the file's ending: `.parquet`, `.jsonl`, `.tsv`. Columns: `index`, `question`,
    `answer`, `prediction`, and those that the benchmark needs; null is blank.

    Args:
        needs: further required columns, see `Rule.needs`.

    Raises:
        FileError: no such file, another format, or a missing column.
        RowError: broken lines, or indices that are not unique.
    """
    header, table = _read_table(path)
    _require(path, header, (*_QUESTION_COLUMNS, "prediction", *needs))
    log = ProblemLog()
    indices = _indices(path, [cells["index"] for cells in table], log)
    rows = []
    for number, (index, cells) in enumerate(zip(indices, table, strict=True)):
        try:
            rows.append(_row(number, index, cells, ()))
        except BadCell as problem:
            log.add(problem.at(number), str(path))
    log.raise_if_any()
    return rows, [cells["prediction"] for cells in table]


def _row(
    number: int, index: int | str, cells: Cells, images: tuple[bytes | str, ...]
) -> BenchmarkRow:
    if not cells["answer"].strip():
        raise BadCell("answer", f"index {cells['index']!r} is blank", "fill it in, or drop the row")
    known = {*_USUAL, *_OPTIONS, "choices", "prediction"}
    return BenchmarkRow(
        number=number,
        index=index,
        question=cells["question"],
        answer=cells["answer"],
        images=images,
        choices=_choices(cells),
        hint=cells.get("hint", ""),
        category=cells.get("category", ""),
        l2_category=cells.get("l2-category", ""),
        split=cells.get("split", ""),
        extra={name: cell for name, cell in cells.items() if cell and name not in known},
    )


def _choices(cells: Cells) -> dict[str, str]:
    found = {letter: cells[letter] for letter in _OPTIONS if cells.get(letter, "").strip()}
    cell = cells.get("choices", "").strip()
    if found or cell in _NO_LIST:
        return found
    options = literal_list(cell)
    if options is None or len(options) > len(_OPTIONS):
        fix = "write a list of at most 26 strings, as ['3/11', '8/11']"
        raise BadCell("choices", f"the cell is {shown(cell)}", fix)
    return dict(zip(_OPTIONS, options, strict=False))


def _require(path: Path, header: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in header]
    if not missing:
        return
    by_lower = {name.strip().casefold(): name for name in header}
    close = difflib.get_close_matches(missing[0].casefold(), by_lower, n=1)
    fix = f"rename {by_lower[close[0]]!r} to {missing[0]!r}" if close else f"add {missing[0]!r}"
    raise FileError(f"{path}: missing columns {missing}, has {list(header)}; {fix}")


def _indices(path: Path, cells: Sequence[str], log: ProblemLog) -> list[int | str]:
    """Integers if all are integers, else strings; blank and repeated ones are logged."""
    texts = [cell.strip() for cell in cells]
    are_integers = all(_INTEGER.fullmatch(text) for text in texts)
    indices: list[int | str] = (
        [int(t.partition(".")[0]) for t in texts] if are_integers else [*texts]
    )
    first: dict[int | str, int] = {}
    for number, index in enumerate(indices):
        if index == "":
            log.add(BadCell("index", "it is blank", _UNIQUE).at(number), str(path))
        elif first.setdefault(index, number) != number:
            found = f"{index!r} is the index of row {first[index]} too"
            log.add(BadCell("index", found, _UNIQUE).at(number), str(path))
    return indices


class _ImageCells:
    """Images of a TSV; an image of several rows is decoded and held once."""

    def __init__(self, path: Path, table: Sequence[Cells]) -> None:
        name = path.stem.removesuffix("_local")
        self._folders = (path.parent, path.parent / "images" / name)
        self._cell_of = {cells["index"].strip(): cells.get("image", "").strip() for cells in table}
        self._checked: dict[str, bytes | str] = {}

    def of(self, cells: Cells) -> tuple[bytes | str, ...]:
        """Encoded images of a row, or their paths; none if both cells are blank.

        Raises:
            BadCell: an unknown row, text that is not base64, no file, or no readable image.
        """
        if cell := cells.get("image", "").strip():
            return tuple(self._encoded(text) for text in self._texts("image", self._referred(cell)))
        paths = self._texts("image_path", cells.get("image_path", "").strip())
        return tuple(self._file(text) for text in paths)

    def _referred(self, cell: str) -> str:
        """The cell, or that of the row it names; a reference must lead to an image directly."""
        if len(cell) > REFERENCE_LENGTH or cell not in self._cell_of:
            return cell
        target = self._cell_of[cell]
        if len(target) <= REFERENCE_LENGTH:
            found = f"it refers to index {cell!r}, which holds no image of its own"
            raise BadCell("image", found, "refer to a row that holds base64")
        return target

    def _texts(self, column: str, cell: str) -> list[str]:
        if not cell:
            return []
        if not cell.startswith("["):
            return [cell]
        texts = literal_list(cell)
        if not texts or not all(text.strip() for text in texts):
            fix = "write a list of strings with one entry per image, as ['...', '...']"
            raise BadCell(column, f"the list is {shown(cell)}", fix)
        return [text.strip() for text in texts]

    def _encoded(self, text: str) -> bytes | str:
        if text not in self._checked:
            try:
                is_uri = is_data_uri(text)
                data = (
                    image_source(text)
                    if is_uri
                    else base64.b64decode("".join(text.split()), validate=True)
                )
            except ValueError as error:
                if isinstance(error, BadCell):
                    raise
                found = f"neither base64 nor another row's index: {shown(text)}"
                raise BadCell("image", found, _REPLACE) from error
            self._checked[text] = _decodable("image", data)
        return self._checked[text]

    def _file(self, text: str) -> bytes | str:
        if text not in self._checked:
            places = [folder / text for folder in self._folders]
            place = next((place for place in places if place.is_file()), places[0])
            self._checked[text] = _decodable("image_path", str(place))
        return self._checked[text]


def _decodable(column: str, source: bytes | str) -> bytes | str:
    try:
        check_image(source, decode=True)
    except BadCell as problem:
        raise BadCell(column, problem.found, problem.fix) from problem
    return source


def _read_table(path: Path) -> tuple[list[str], list[Cells]]:
    if path.suffix == ".xlsx":
        raise FileError(
            f"{path}: Excel files are not read (openpyxl is not a dependency); save it as .tsv, or "
            "`pandas.read_excel(FILE).to_json(OUT, orient='records', lines=True)`"
        )
    readers = {".tsv": _read_separated, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise FileError(f"{path}: a file of predictions ends in {', '.join(readers)}; convert it")
    if not path.is_file():
        raise FileError(f"{path} does not exist; give a file with predictions")
    return readers[path.suffix](path)


def _read_separated(path: Path) -> tuple[list[str], list[Cells]]:
    """Header and rows of a TSV: UTF-8 with or without BOM, any line ends, quoted line feeds."""
    if not path.is_file():
        raise FileError(f"{KEY}: {path} does not exist; give the path of a TSV file")
    log = ProblemLog()
    table: list[Cells] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file, _large_cells():
            lines = csv.reader(file, delimiter="\t", strict=True)
            header = [name.strip() for name in next(lines, [])]
            _check_header(path, header)
            for cells in lines:
                if not cells:
                    continue
                if len(cells) != len(header):
                    found = f"{len(cells)} cells, {len(header)} in the header"
                    fix = 'quote cells that hold tabs, line feeds or quotes ("...")'
                    log.add(BadCell(header[0], found, fix).at(len(table)), str(path))
                table.append(dict(zip(header, cells, strict=False)))
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except csv.Error as error:
        fix = 'quote cells that hold tabs, line feeds or quotes ("..."), with quotes doubled'
        raise FileError(f"{path}, line {lines.line_num}: {error}; {fix}") from error
    log.raise_if_any()
    if not table:
        raise FileError(f"{path} has no rows; create it again, or leave it out")
    return header, table


def _check_header(path: Path, header: Sequence[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise FileError(f"{path}: columns {twice} are there twice; rename or drop one of each")


@contextmanager
def _large_cells() -> Iterator[None]:
    """Raise csv's limit of 128 KiB for a cell: images have megabytes."""
    before = csv.field_size_limit(_CELL_LIMIT)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_jsonl(path: Path) -> tuple[list[str], list[Cells]]:
    log = ProblemLog()
    table: list[Cells] = []
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:
                record = error
            if not isinstance(record, dict):
                found = f"no JSON object: {shown(record)}"
                log.add(BadCell("index", found, "write one object per line").at(number), str(path))
                continue
            table.append({name: _text(value) for name, value in record.items()})
    log.raise_if_any()
    header = list(dict.fromkeys(name for cells in table for name in cells))
    return header, [{name: cells.get(name, "") for name in header} for cells in table]


def _read_parquet(path: Path) -> tuple[list[str], list[Cells]]:
    with open_parquet(path, key="FILE") as parquet:
        unread = {*_IMAGE_COLUMNS, "images"}
        header = [name for name in parquet.schema_arrow.names if name not in unread]
        rows = iter_rows(parquet, header, path=path, key="FILE")
        return header, [{name: _text(value) for name, value in row.items()} for _, row in rows]


def _text(value: object) -> str:
    """A cell as text, as in a TSV; null and nan are blank."""
    if value is None or value != value:
        return ""
    return value if isinstance(value, str) else str(value)


def _read_our_parquet(path: Path) -> list[BenchmarkRow]:
    """Rows of our format; the index is `extra_info.index`, else the number of the row.

    If several data sources use the same index, indices become `SOURCE/INDEX`.
    """
    log = ProblemLog()
    table: list[dict[str, Any]] = []
    with open_parquet(path, key=KEY) as parquet:
        _require(path, parquet.schema_arrow.names, REQUIRED_COLUMNS)
        columns = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
        for number, row in iter_rows(parquet, columns, path=path, key=KEY):
            sources: tuple[ImageEntry, ...] = ()
            problems = row_problems(row, _RULES)
            try:
                sources = () if problems else _sources(row)
            except BadCell as damaged:
                problems = [damaged]
            for problem in problems:
                log.add(problem.at(number), str(path))
            table.append({**row, "sources": sources})
    log.raise_if_any()
    indices = _indices(path, _our_indices(table), log)
    log.raise_if_any()
    return [_our_row(n, i, row) for n, (i, row) in enumerate(zip(indices, table, strict=True))]


def _sources(row: Mapping[str, Any]) -> tuple[ImageEntry, ...]:
    for source in check_images_match(row["prompt"], row["images"]):
        _decodable("images", source)
    return tuple(map(sized_image, row["images"] or ()))


def _our_indices(table: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [(row["extra_info"] or {}).get("index") for row in table]
    if any(index is None for index in found):
        return [str(number) for number in range(len(table))]
    sources = {row["data_source"] for row in table}
    if len(sources) == 1 or len(set(found)) == len(found):
        return [str(index) for index in found]
    return [f"{row['data_source']}/{index}" for row, index in zip(table, found, strict=True)]


def _our_row(number: int, index: int | str, row: Mapping[str, Any]) -> BenchmarkRow:
    info = row["extra_info"] or {}
    answer, *alternatives = truths_of(row["reward_model"])
    return BenchmarkRow(
        number=number,
        index=index,
        question=row["prompt"][-1]["content"].replace(IMAGE_PLACEHOLDER, "").strip(),
        answer=answer,
        alternatives=tuple(alternatives),
        images=row["sources"],
        category=row["data_source"],
        split=_text(info.get("split")),
        messages=tuple(row["prompt"]),
        style=_text(row["reward_model"].get("style")),
        extra={name: _text(value) for name, value in info.items() if _text(value)},
    )
