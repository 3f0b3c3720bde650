"""Opens images: one decoder, so that policy, claims, evaluation and report see the same pixels.

:func:`load_image` states the rule. :func:`read_header` tells the same without decoding, and
:class:`vapo_verl.data.stored_image.StoredImage` decodes when it is looked at.
"""

import base64
import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image

from vapo_verl.data.errors import BadCell, shown
from vapo_verl.data.image_pixels import (
    IMAGE_ERRORS,
    SIDEWAYS,
    check_size,
    from_array,
    is_deep,
    orientation,
    upright_rgb,
)

HEADER_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF")
"""Formats whose header states the size of the decoded image, as Pillow opens them. An icon, for
one, may turn out larger when it is decoded."""

FETCH_TIMEOUT_S = 60.0

_DATA_URI = "data:"
_ENTRY_FORMS = "write a path, or {bytes, path} with one of them set"
_REPLACE = "replace the image or drop the row"
_LATE_CHUNKS = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")
"""PNG chunks that may hold an orientation; behind the pixels they are read when it is decoded."""


def load_image(entry: object, *, base: Path = Path(), fetch: bool = False) -> Image.Image:
    """The image of `entry` in 8-bit RGB: the pixels that every part of this package sees.

    The rule, in this order:

    - Of an animation or of several pages, the first one.
    - 16 bits a channel: 0 .. 65535 becomes 0 .. 255, rounded. So do integers of 32 bits. Floats of
      0 .. 1, 0 .. 255 or 0 .. 65535, by the largest value, become 0 .. 255. Negative, larger and
      nan values are refused.
    - Palettes, grey, CMYK and other colour spaces are converted as Pillow does; colour profiles
      (ICC) are not applied.
    - What is transparent, in any mode, is shown on white.
    - The orientation in EXIF, or else in XMP, is applied once: the image is upright.

    Args:
        entry: encoded bytes; a path; a `file://` address; a `data:` URI; {bytes, path, image} with
            one of them set, as the `datasets` library has it; a PIL image; an array of height x
            width, or height x width x 1, 2, 3 or 4 channels, of uint8, uint16, bool or float.
        base: where a relative path starts.
        fetch: download `http(s)://` addresses; they are refused otherwise.

    Raises:
        BadCell: no such entry, no file there, no or a damaged image, no pixels, more pixels than
            Pillow's limit against decompression bombs (`Image.MAX_IMAGE_PIXELS` twice), or one side
            over MAX_ASPECT_RATIO times the other.
    """
    source = _source(entry)
    if isinstance(source, Image.Image | np.ndarray):
        with _readable(f"an image of type {type(source).__name__}"):
            return upright_rgb(from_array(source) if isinstance(source, np.ndarray) else source)
    if isinstance(source, str) and is_remote(source):
        if not fetch:
            raise BadCell("images", f"an address: {source!r}", "download it and give its path")
        source = _fetched(source)
    with _readable(_name(source)), Image.open(_file(source, base)) as image:
        return upright_rgb(image)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """An image as its header describes it."""

    format: str
    width: int
    """Pixels after the orientation is applied; so is `height`."""
    height: int
    has_exact_size: bool
    """Whether the decoded image is sure to have this size."""
    is_turned: bool
    """Its orientation is other than upright."""
    is_transparent: bool
    is_deep: bool
    """More than 8 bits a channel."""
    is_plain: bool
    """Any decoder gives the pixels of :func:`load_image`: 8 bits, opaque, upright, one frame."""


def read_header(entry: object, *, base: Path = Path()) -> ImageHeader:
    """What the header of an image tells; no pixel is decoded.

    Raises:
        BadCell: `entry` names no image, or one at an address.
        OSError, SyntaxError, ValueError: Pillow finds no image.
    """
    source = image_source(entry)
    if isinstance(source, str) and is_remote(source):
        raise BadCell("images", f"an address: {source!r}", "download it and give its path")
    with Image.open(_file(source, base)) as image:
        return _header(image)


def check_image(source: bytes | str, *, decode: bool = False) -> ImageHeader:
    """Open the image; with `decode` read all its pixels, which also finds cut-off JPEG data.

    Raises:
        BadCell: as :func:`load_image`.
    """
    if isinstance(source, str) and not is_remote(source) and not local_path(source).is_file():
        raise BadCell(
            "images", f"no file {source!r}", "correct the path; absolute paths are safest"
        )
    with _readable(_name(source)):
        header = read_header(source)
    check_size(header.width, header.height)
    if decode:
        load_image(source)
    else:
        with _readable(_name(source)), Image.open(_file(source, Path())) as image:
            image.verify()
    return header


def image_source(entry: object) -> bytes | str:
    """The encoded image, or the path or address where it is; a data URI is taken apart.

    Raises:
        BadCell: neither bytes, a string nor a struct with `bytes`, `path` or `image` set.
    """
    source = _source(entry)
    if isinstance(source, bytes | str):
        return source
    raise BadCell("images", f"an image is {shown(entry)}", _ENTRY_FORMS)


def is_remote(source: bytes | str) -> bool:
    """Whether the image has to be downloaded."""
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def is_data_uri(source: object) -> bool:
    """Whether the image stands in the address itself."""
    return isinstance(source, str) and source.startswith(_DATA_URI)


def local_path(source: str) -> Path:
    return Path(source.removeprefix("file://"))


def _source(entry: object) -> bytes | str | Image.Image | np.ndarray:
    """What an entry holds, taken out of its struct."""
    if isinstance(entry, dict):
        fields = (entry.get(name) for name in ("bytes", "image", "path"))
        entry = next((field for field in fields if _is_set(field)), entry)
    if isinstance(entry, bytearray | memoryview):
        return bytes(entry)
    if isinstance(entry, bytes | Image.Image | np.ndarray) and _is_set(entry):
        return entry
    if isinstance(entry, Path) or (isinstance(entry, str) and entry.strip()):
        text = str(entry)
        return _decoded_uri(text) if is_data_uri(text) else text
    raise BadCell("images", f"an image is {shown(entry)}", _ENTRY_FORMS)


def _is_set(value: Any) -> bool:
    return value is not None and (not isinstance(value, bytes | str) or len(value) > 0)


def _decoded_uri(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    try:
        if not comma:
            raise ValueError("it has no comma")
        data = unquote_to_bytes(body)
        return base64.b64decode(data, validate=True) if head.endswith(";base64") else data
    except ValueError as error:
        found = f"a data URI that cannot be decoded ({error}): {shown(uri)}"
        raise BadCell("images", found, "write data:image/png;base64,...") from error


def _file(source: bytes | str, base: Path) -> io.BytesIO | Path:
    return io.BytesIO(source) if isinstance(source, bytes) else base / local_path(source)


def _name(source: bytes | str) -> str:
    return shown(source) if isinstance(source, bytes) or is_data_uri(source) else repr(source)


def _fetched(address: str) -> bytes:
    import requests  # only where a data set has addresses

    try:
        response = requests.get(address, timeout=FETCH_TIMEOUT_S)
        response.raise_for_status()
        return response.content
    except requests.RequestException as error:
        found = f"cannot download {address!r}: {error}"
        raise BadCell("images", found, "download it yourself and give its path") from error


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Say of an error which image it is about."""
    try:
        yield
    except BadCell:
        raise
    except IMAGE_ERRORS as error:
        raise BadCell("images", f"cannot read {name}: {error}", _REPLACE) from error


def _header(image: Image.Image) -> ImageHeader:
    is_tiff = image.format == "TIFF"  # Pillow turns these when it decodes, and says so in `size`
    turn = orientation(image, from_header=True)
    width, height = image.size
    if turn in SIDEWAYS and not is_tiff:
        width, height = height, width
    has_exact_size = image.format in HEADER_FORMATS and not _has_late_chunks(image)
    deep, is_transparent = is_deep(image), image.has_transparency_data
    return ImageHeader(
        format=image.format or "",
        width=width,
        height=height,
        has_exact_size=has_exact_size,
        is_turned=turn != 1,
        is_transparent=is_transparent,
        is_deep=deep,
        is_plain=(
            has_exact_size
            and turn == 1
            and not (deep or is_transparent)
            and image.mode in ("1", "L", "P", "RGB")
            and not getattr(image, "is_animated", False)
        ),
    )


def _has_late_chunks(image: Image.Image) -> bool:
    """Whether a PNG file has text or EXIF behind its pixels."""
    file = getattr(image, "fp", None)
    if image.format != "PNG" or file is None:
        return False
    position, seen_pixels = 8, False  # behind the signature
    while True:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return False
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            return False
        seen_pixels |= kind == b"IDAT"
        if seen_pixels and kind in _LATE_CHUNKS:
            return True
        position += 12 + length  # length and kind before the chunk, a checksum behind it
