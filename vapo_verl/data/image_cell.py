"""One entry of the `images` column: where its pixels are, and whether they can be read.

veRL takes a string (a path, `file://` or `http(s)://` address) or a struct with `bytes` or `image`.
A struct of the `datasets` library that holds only a path, {bytes: null, path: ...}, is common and
veRL 0.9.1 stumbles over the null; `loadable_image` gives it the form veRL can open.
"""

import io
from pathlib import Path

from PIL import Image

from vapo_verl.data.errors import BadCell, shown

MAX_ASPECT_RATIO = 200
"""Qwen's image processors refuse images longer than this many times their width, or the reverse."""

IMAGE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises on a file that is no image, or a damaged one."""

_REMOTE_PREFIXES = ("http://", "https://", "data:")
_ENTRY_FORMS = "write a path, or {bytes, path} with one of them set"


def image_source(entry: object) -> bytes | str:
    """The encoded image, or the path or address where it is.

    Raises:
        BadCell: neither a string nor a struct with `bytes`, `path` or `image` set.
    """
    if isinstance(entry, str) and entry.strip():
        return entry
    if isinstance(entry, dict):
        for field in ("bytes", "image", "path"):
            if entry.get(field) and isinstance(entry[field], bytes | str):
                return entry[field]
    raise BadCell("images", f"an image is {shown(entry)}", _ENTRY_FORMS)


def loadable_image(entry: object) -> object:
    """`entry` in a form that veRL opens; entries that need no help come back as they are."""
    if not isinstance(entry, dict) or entry.get("bytes"):
        return entry
    options = {name: value for name, value in entry.items() if name not in ("bytes", "path")}
    return {**options, "image": entry.get("image") or entry.get("path")}


def is_remote(source: bytes | str) -> bool:
    """Whether the image comes from an address (or a data URL) rather than from bytes or a file."""
    return isinstance(source, str) and source.startswith(_REMOTE_PREFIXES)


def local_path(source: str) -> Path:
    return Path(source.removeprefix("file://"))


def image_file(source: bytes | str) -> io.BytesIO | Path:
    """What Pillow opens: the encoded image, or the local path where it is."""
    return io.BytesIO(source) if isinstance(source, bytes) else local_path(source)


def on_white(image: Image.Image) -> Image.Image:
    """The image in RGB; what is transparent in it is shown on white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    over = image.convert("RGBA")
    white = Image.new("RGBA", over.size, "white")
    return Image.alpha_composite(white, over).convert("RGB")


def check_image(source: bytes | str, *, decode: bool = False) -> None:
    """Open the image; with `decode` read all its pixels, which also finds cut-off JPEG data.

    Raises:
        BadCell: the file is missing, is no image, or has an extreme aspect ratio.
    """
    if isinstance(source, str) and not local_path(source).is_file():
        raise BadCell(
            "images", f"no file {source!r}", "correct the path; absolute paths are safest"
        )
    try:
        with Image.open(image_file(source)) as image:
            width, height = image.size
            image.load() if decode else image.verify()
    except IMAGE_ERRORS as error:
        found = f"cannot read {shown(source)}: {error}"
        raise BadCell("images", found, "replace the image or drop the row") from error
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        found = f"image is {width} x {height} pixels, ratio over {MAX_ASPECT_RATIO}"
        raise BadCell("images", found, "pad or crop the image, or drop the row")
