"""Rows that a checkpoint is probed on, from a data file of our row format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from vapo_verl.config import ANSWER_STYLES, JUDGE_STYLE
from vapo_verl.data.cells import RowRules, check_row, truths_of
from vapo_verl.data.claims_column import Claim, read_claims
from vapo_verl.data.errors import BadCell, FileError, RowError
from vapo_verl.data.images import (
    IMAGE_ERRORS,
    ImageEntry,
    image_source,
    is_remote,
    load_image,
    read_header,
    sized_image,
)
from vapo_verl.data.parquet_stream import iter_rows, open_parquet, require_columns
from vapo_verl.data.rows import REQUIRED_COLUMNS, columns_for

T = TypeVar("T")
KEY = "DATA"
_NO_JUDGE = (
    f"probes grade by rules and ask no judge: name one of {', '.join(ANSWER_STYLES)} in "
    "reward_model.style, or leave the row out"
)
_IMPORT_FIRST = "run `python -m vapo_verl.data import-plain` on it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One question with its images, still encoded."""

    number: int
    """Index in its file, from 0: the row's key in all results."""
    data_source: str
    index: int | None
    """`extra_info.index`."""
    messages: tuple[Mapping[str, str], ...]
    """Turns with one `<image>` in their text per image."""
    images: tuple[ImageEntry, ...]
    """Encoded images or their locations, with options for size."""
    ground_truth: str
    """The answer; several correct ones are joined by ` | `."""
    style: str
    """How answers are compared, see :func:`vapo_verl.reward.accuracy.accuracy`."""
    claims: tuple[Claim, ...]
    truths: tuple[str, ...] = ()
    """Any of these is correct; `ground_truth` alone where there are none."""

    def identity(self) -> dict[str, Any]:
        """Fields of the row in every result."""
        return {
            "row": self.number,
            "data_source": self.data_source,
            "index": self.index,
            "ground_truth": self.ground_truth,
        }


def read_rows(
    path: Path,
    *,
    num_rows: int | None,
    seed: int,
    answer_style: str,
    rules: RowRules | None = None,
) -> list[Row]:
    """Draw `num_rows` rows of a file, in the file's order; they are held in memory, encoded.

    Args:
        num_rows: None takes all of them.
        answer_style: of rows that name none in `reward_model.style`.
        rules: checks of the rows; by default, refuse control tokens of Qwen-VL, videos and audio.

    Raises:
        FileError: no such file, not parquet, or without a required column.
        RowError: a drawn row cannot be used, for example style `judge`, which no rule can grade.
    """
    with open_parquet(path, key=KEY) as parquet:
        require_columns(parquet, REQUIRED_COLUMNS, path=str(path), fix=_IMPORT_FIRST)
        total = parquet.metadata.num_rows
        wanted = frozenset(draw_rows(total, num_rows, seed))
        rules = rules or RowRules(refuse_media=True)
        rows = iter_rows(parquet, columns_for(rules), path=path, key=KEY)
        return [
            _row(path, number, row, answer_style, rules) for number, row in rows if number in wanted
        ]


def draw_rows(total: int, num_rows: int | None, seed: int) -> list[int]:
    """Row numbers in ascending order; the same seed draws the same ones."""
    if num_rows is None or num_rows >= total:
        return list(range(total))
    return sorted(np.random.default_rng(seed).permutation(total)[:num_rows].tolist())


def open_image(source: ImageEntry) -> Image.Image:
    """The image in its own size, as training decodes it; an image at a URL is downloaded.

    Raises:
        FileError: it cannot be read.
    """
    try:
        return load_image(source, fetch=True)
    except BadCell as error:
        raise FileError(f"{KEY}: {error}") from error


def image_size(entry: ImageEntry) -> tuple[int, int]:
    """Width and height in pixels, from the file's header; (0, 0) for an image at a URL.

    Raises:
        FileError: it cannot be read.
    """
    source = image_source(entry)
    if is_remote(source):
        return 0, 0
    try:
        header = read_header(source)
        return (header.width, header.height) if header.has_exact_size else load_image(source).size
    except IMAGE_ERRORS as error:
        raise FileError(f"{KEY}: an image cannot be read: {error}; drop the row") from error


def _row(
    path: Path, number: int, row: Mapping[str, Any], answer_style: str, rules: RowRules
) -> Row:
    try:
        check_row(row, rules)
        truths = truths_of(row["reward_model"])
        style = row["reward_model"].get("style")
        if style == JUDGE_STYLE:
            raise BadCell("reward_model", f"style is {style!r}", _NO_JUDGE)
    except BadCell as problem:
        raise RowError(problem.at(number).describe(str(path))) from problem
    return Row(
        number=number,
        data_source=str(row["data_source"]),
        index=(row["extra_info"] or {}).get("index"),
        messages=tuple(row["prompt"]),
        images=tuple(map(sized_image, row["images"] or ())),
        ground_truth=" | ".join(truths),
        style=style if style in ANSWER_STYLES else answer_style,
        claims=read_claims(row["claims"]),
        truths=truths,
    )


def batches(rows: Sequence[T], size: int) -> list[Sequence[T]]:
    """The rows in pieces of `size`."""
    return [rows[first : first + size] for first in range(0, len(rows), size)]
