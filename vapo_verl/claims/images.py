"""The images of a data set, one by one: from a folder of image files or from parquet rows.

Only the image column is read, so that no question can get from here into a prompt.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vapo_verl.data.errors import BadCell, FileError, RowProblem, shown
from vapo_verl.data.images import (
    IMAGE_ERRORS,
    image_source,
    is_remote,
    local_path,
    read_header,
)
from vapo_verl.data.parquet_stream import iter_rows, open_parquet, require_columns

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)

_SET_ROOT = "correct the path, or give the folder that relative paths start from as --image-root"
OnProblem = Callable[[RowProblem, str], None]
"""Called with an unreadable image and its file; raises, or returns to go on without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageItem:
    """One image file, not decoded."""

    key: str
    """`image_key` of `data`."""
    data: bytes
    media_type: str
    """MIME type such as `image/png`, from the first bytes and not from a name."""
    source: str
    """The file, or the parquet file and row, for messages."""


def image_key(data: bytes) -> str:
    """The id of an image everywhere: SHA-256 (hex) of the stored image file's bytes."""
    return hashlib.sha256(data).hexdigest()


def raise_problem(problem: RowProblem, path: str) -> None:
    raise FileError(problem.describe(path))


def iter_images(
    source: Path,
    column: str = "images",
    *,
    base: Path | None = None,
    on_problem: OnProblem = raise_problem,
) -> Iterator[ImageItem]:
    """Yield every image of `source` once, in a fixed order; memory is that of a few images.

    Args:
        source: a parquet file, an image file, or a folder, searched recursively for both.
        column: column of parquet rows with a list of images, or one image. Null is no image.
        base: where relative paths in parquet rows start; the working directory, as in training.
        on_problem: called for a cell or file without a readable image; raises by default.

    Raises:
        FileError: nothing there, unreadable parquet, no such column, or an unreadable image.
    """
    seen: set[str] = set()
    for path in _files(source):
        if path.suffix.lower() == ".parquet":
            items = _from_parquet(path, column, base or Path(), on_problem)
        else:
            items = _from_cells([str(path)], Path(), str(path), 0, "file", on_problem)
        for item in items:
            if item.key not in seen:
                seen.add(item.key)
                yield item


def cell_bytes(cell: object, base: Path) -> bytes:
    """The stored file of one image cell, byte for byte, without decoding it.

    Args:
        cell: a path, or a struct with `bytes` or `path`.
        base: where a relative path starts.

    Raises:
        BadCell: the cell names no image, an address instead of a file, or a file that is not there.
    """
    found = image_source(cell)
    if isinstance(found, bytes):
        return found
    if is_remote(found):
        raise BadCell("images", f"an address: {shown(found)}", "download it and give its path")
    try:
        return (base / local_path(found)).read_bytes()
    except OSError as error:
        reason = f"cannot read {found!r}: {error.strerror}"
        raise BadCell("images", reason, _SET_ROOT) from error


def media_type(data: bytes) -> str:
    """MIME type such as `image/png`: common formats by their first bytes, others by the header.

    Raises:
        BadCell: not an image, or of a format that cannot be opened.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    try:
        return f"image/{read_header(data).format.lower()}"
    except IMAGE_ERRORS as error:
        raise BadCell(
            "images", f"{shown(data)} that are no image file", f"store one of {IMAGE_SUFFIXES}"
        ) from error


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    wanted = (".parquet", *IMAGE_SUFFIXES)
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in wanted)
    if not files:
        what = "holds no image or parquet file" if source.is_dir() else "does not exist"
        raise FileError(f"SOURCE: {source} {what}; give a parquet file or a folder of images")
    return files


def _from_parquet(
    path: Path, column: str, base: Path, on_problem: OnProblem
) -> Iterator[ImageItem]:
    parquet = open_parquet(path, key="SOURCE")
    require_columns(parquet, [column], path=str(path), fix="name the images' column with --column")
    for number, row in iter_rows(parquet, [column], path=path, key="SOURCE"):
        cell = row[column]
        cells = cell if isinstance(cell, list) else [] if cell is None else [cell]
        yield from _from_cells(cells, base, str(path), number, column, on_problem)


def _from_cells(
    cells: list, base: Path, path: str, row: int, column: str, on_problem: OnProblem
) -> Iterator[ImageItem]:
    place = path if column == "file" else f"{path} row {row}"
    for cell in cells:
        try:
            data = cell_bytes(cell, base)
            item = ImageItem(
                key=image_key(data), data=data, media_type=media_type(data), source=place
            )
        except BadCell as bad:
            on_problem(RowProblem(row=row, column=column, found=bad.found, fix=bad.fix), path)
        else:
            yield item
