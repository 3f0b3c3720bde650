"""Importer of question-answer sets without claims: ViRL39K, geometry3k and their like.

The question is in `question` (ViRL39K) or `problem` (geometry3k), the answer in `answer`, and the
images in `image` or `images`: relative paths under an image root, or structs with bytes. One image
may stand alone, outside a list.
"""

from functools import partial
from pathlib import Path

from vapo_verl.data.errors import FileError
from vapo_verl.data.importers.source_row import RowReader, id_columns, read_basics

_QUESTION_COLUMNS = ("question", "problem")
_IMAGE_COLUMNS = ("image", "images")


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
