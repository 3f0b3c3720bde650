"""Importer of question-answer sets without claims: ViRL39K, geometry3k and their like.

The question is in `question` (ViRL39K) or `problem` (geometry3k), the answer in `answer`, and the
images in `image` or `images`: relative paths under an image root, or structs with bytes. One image
may stand alone, outside a list. What it reads off a row, importers of sets with claims read too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vapo_verl.data.cells import IMAGE_PLACEHOLDER, truths_of
from vapo_verl.data.claims_column import Claim
from vapo_verl.data.errors import BadCell, FileError, shown

_ID_COLUMNS = ("qid", "id", "problem_id", "pid")
_BOX = "\\boxed{"
_DROP = "drop the row, or pass --skip-bad-rows"
_ONE_ANSWER = (
    "an import writes one; write rows of the format yourself, with a list in "
    "reward_model.ground_truth, or pass --skip-bad-rows"
)
_QUESTION_COLUMNS = ("question", "problem")
_IMAGE_COLUMNS = ("image", "images")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """What an importer reads off one row."""

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
    """How to read the rows of one source file, settled from its columns."""

    columns: tuple[str, ...]
    image_column: str
    read: Callable[[Mapping[str, object]], SourceRow]
    """Raises BadCell on a row that cannot be used."""


def read_basics(row: Mapping[str, object], *, question: str, images: str) -> SourceRow:
    """The claimless part of a row, from the named columns and from `answer` and an id column.

    Raises:
        BadCell: no question, no answer, or other than one placeholder per image in a question
            that has placeholders.
    """
    text, entries = _text(row, question), _as_entries(row[images])
    num_placeholders = text.count(IMAGE_PLACEHOLDER)
    if num_placeholders not in (0, len(entries)):
        raise BadCell(question, f"{num_placeholders} <image> for {len(entries)} images", _DROP)
    ids = [str(row[name]) for name in _ID_COLUMNS if row.get(name) is not None]
    return SourceRow(
        question=text,
        answer=_answer(row["answer"]),
        images=entries,
        source_id=ids[0] if ids else None,
    )


def id_columns(present: list[str]) -> tuple[str, ...]:
    """Those of the file's columns that may hold the row's id."""
    return tuple(name for name in _ID_COLUMNS if name in present)


def unbox(answer: str) -> str:
    r"""`\boxed{4}` as `4`: the ground truth is compared with what stands inside the box.

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


def _text(row: Mapping[str, object], column: str) -> str:
    text = "" if row[column] is None else str(row[column]).strip()
    if not text.replace(IMAGE_PLACEHOLDER, "").strip():
        raise BadCell(column, f"nothing asked or answered: {shown(row[column])}", _DROP)
    return text


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
    question = _first(_QUESTION_COLUMNS, present, path)
    images = _first(_IMAGE_COLUMNS, present, path)
    return RowReader(
        columns=(question, "answer", images, *id_columns(present)),
        image_column=images,
        read=partial(read_basics, question=question, images=images),
    )


def _first(names: tuple[str, ...], present: list[str], path: str | Path) -> str:
    for name in names:
        if name in present:
            return name
    wanted = " or ".join(names)
    raise FileError(f"{path}: no column {wanted}, has {present}; rename the column that holds it")
