"""Opens images: one decoder, so that policy, claims, evaluation and report see the same pixels.

:func:`load_image` states the rule. :func:`read_header` describes its result without decoding, and
:class:`vapo_verl.data.images.StoredImage` decodes on first use. :func:`resized` makes the input of
a policy's processor.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
from PIL import Image, UnidentifiedImageError

from vapo_verl.data.errors import BadCell, RowError, shortened, shown
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
"""Formats whose header states the size of the decoded image, as Pillow opens them. In others, such
as icons, the decoded image may be larger."""

FETCH_TIMEOUT_S = 60.0

IMAGE_OPTIONS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
"""Fields beside the image in a struct that set its size; others are ignored."""
MAX_OPTION = 16384 * 28 * 28
"""Pixels to which Qwen's own code shrinks at most; a larger option would enlarge without bound."""
_LEAST_PIXELS = 4 * 32 * 32
"""An upper limit below this many, given alone, contradicts the lower limit of Qwen's own code."""

_DATA_URI = "data:"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_ENTRY_FORMS = "write a path, or {bytes, path} with one of them set"
_CORRECT_PATH = "correct the path; absolute paths are safest"
_REPLACE = "replace the image or drop the row"
_SHOWN_PATH = 300
_JPEG_TAIL = 4096
"""Some cameras write some bytes after the end of the image."""
_LATE_CHUNKS = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")
"""PNG chunks that may hold an orientation; after the pixels they are read only on decoding."""


@dataclass(frozen=True, slots=True)
class SizedImage:
    """An image whose struct has options for its size; equality includes the options."""

    source: bytes | str
    """As :func:`image_source` returns it."""
    options: tuple[tuple[str, int], ...]
    """Those of IMAGE_OPTIONS that are set."""


ImageEntry = bytes | str | SizedImage
"""An image of a row, hashable: its source, and its options where it has any."""


def sized_image(entry: object) -> ImageEntry:
    """The source of an entry, with the options of its struct.

    Raises:
        BadCell: as :func:`image_source`.
    """
    source, options = image_source(entry), _own_options(entry)
    return SizedImage(source, tuple(options.items())) if options else source


def _own_options(entry: object) -> dict[str, Any]:
    """The IMAGE_OPTIONS that are set in an image's struct, unchecked."""
    if isinstance(entry, SizedImage):
        return dict(entry.options)
    fields = entry if isinstance(entry, dict) else {}
    return {name: fields[name] for name in IMAGE_OPTIONS if fields.get(name) is not None}


def load_image(entry: object, *, fetch: bool = False) -> Image.Image:
    """The image of `entry` in 8-bit RGB: the pixels that every part of this package sees.

    The rule, in this order:

    - The first frame of an animation, the first of several pages.
    - 16 bits a channel: 0 .. 65535 becomes 0 .. 255, rounded. So do integers of 32 bits. Floats of
      0 .. 1, 0 .. 255 or 0 .. 65535, by the largest value, become 0 .. 255. Negative, larger and
      nan values are refused.
    - Palettes, grey, CMYK and other colour spaces are converted as Pillow does; colour profiles
      (ICC) are not applied.
    - Transparent pixels, in any mode, are shown on white.
    - The orientation in EXIF, or else in XMP, is applied once: the image is upright.

    Args:
        entry: encoded bytes; a path; a `file://` address; a `data:` URI; {bytes, path, image} with
            one of them set, as the `datasets` library has it; a PIL image; an array of height x
            width, or height x width x 1, 2, 3 or 4 channels, of uint8, uint16, bool or float.
        fetch: download `http(s)://` addresses; they are refused otherwise.

    Raises:
        BadCell: no such entry, no file, no image or a damaged one, no pixels, more pixels than
            Pillow's limit against decompression bombs (`Image.MAX_IMAGE_PIXELS` twice), or one side
            over MAX_ASPECT_RATIO times the other.
    """
    source = _source(entry)
    if isinstance(source, Image.Image | np.ndarray):
        with _readable(f"an image of type {type(source).__name__}"):
            return upright_rgb(from_array(source) if isinstance(source, np.ndarray) else source)
    if isinstance(source, str) and is_remote(source):
        if not fetch:
            raise BadCell("images", f"an address: {_name(source)}", "download it and give its path")
        source = _fetched(source)
    with _readable(_name(source)), Image.open(_file(source)) as image:
        return upright_rgb(image)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """An image as its header describes it."""

    format: str
    width: int
    """Pixels after the orientation is applied; so is `height`."""
    height: int
    has_exact_size: bool
    """Whether the decoded image is certain to have this size."""
    is_turned: bool
    """Its orientation is other than upright."""
    is_transparent: bool
    is_deep: bool
    """More than 8 bits a channel."""
    is_plain: bool
    """Any decoder gives the pixels of :func:`load_image`: 8 bits, opaque, upright, one frame."""


def read_header(entry: object) -> ImageHeader:
    """Describe an image by its header; no pixel is decoded.

    Raises:
        BadCell: `entry` names no image, or one at an address.
        OSError, SyntaxError, ValueError: Pillow finds no image.
    """
    source = image_source(entry)
    if isinstance(source, str) and is_remote(source):
        raise BadCell("images", f"an address: {_name(source)}", "download it and give its path")
    with Image.open(_file(source)) as image:
        return _header(image)


def check_image(source: bytes | str, *, decode: bool = False) -> ImageHeader:
    """Check the header and the end of an image; with `decode` read all its pixels.

    A file is always decoded if its end is missing, or if its format does not mark the end.

    Raises:
        BadCell: as :func:`load_image`.
    """
    if isinstance(source, str) and is_remote(source):
        raise BadCell("images", f"an address: {_name(source)}", "download it and give its path")
    with _readable(_name(source)), Image.open(_file(source)) as image:
        header = _header(image)
        check_size(header.width, header.height)
        decode = decode or not _is_complete(image)
    if decode:
        load_image(source)
    return header


def resized(image: Image.Image, *, patch_size: int, **options: int | None) -> Image.Image:
    """The image in the size that veRL gives to the processor of a Qwen-VL model.

    Args:
        image: from :func:`load_image`.
        patch_size: of the processor.
        options: from :func:`image_options`; None or absent: the model's own.

    Raises:
        ValueError: a side would be over 200 times the other.
    """
    from qwen_vl_utils import fetch_image  # imports torch

    given = {name: value for name, value in options.items() if value is not None}
    return fetch_image({"image": image, **given}, image_patch_size=patch_size)


def image_options(
    entry: object, limits: Mapping[str, int | None] = MappingProxyType({})
) -> dict[str, int]:
    """How an image is to be resized: IMAGE_OPTIONS of its struct, and the limits of a run.

    Args:
        limits: `min_pixels` and `max_pixels` of the configuration; if one is set, the struct's own
            limits are ignored.

    Raises:
        BadCell: an option is no whole number of 1 to MAX_OPTION, or two contradict each other.
    """
    given = _own_options(entry)
    for name, value in given.items():
        if type(value) is not int or not 1 <= value <= MAX_OPTION:
            found = f"{name} of an image is {shown(value)}"
            raise BadCell("images", found, f"write a number of 1 to {MAX_OPTION}, or null")
    if given.get("min_pixels", 0) > given.get("max_pixels", MAX_OPTION):
        found = f"min_pixels={given['min_pixels']} above max_pixels={given['max_pixels']}"
        raise BadCell("images", found, "exchange them")
    sides = [given[name] for name in IMAGE_OPTIONS[2:] if name in given]
    if len(sides) == 2:
        check_size(*sides)
        if sides[0] * sides[1] > MAX_OPTION:
            found = f"resized_height x resized_width is {sides[0]} x {sides[1]}"
            raise BadCell("images", found, f"write at most {MAX_OPTION} pixels")
    ours = {name: pixels for name, pixels in limits.items() if pixels is not None}
    if ours:
        given = {name: value for name, value in given.items() if name in IMAGE_OPTIONS[2:]}
    elif given.get("max_pixels", MAX_OPTION) < _LEAST_PIXELS:
        given.setdefault("min_pixels", given["max_pixels"])
    return given | ours


def check_resize(width: int, height: int, *, factor: int, **options: int) -> None:
    """Refuse an image whose shorter side has no pixels left after it is resized for a model.

    When qwen_vl_utils 0.0.14 shrinks a long image to `max_pixels`, it may round the shorter side
    down to 0, and fails (`smart_resize`).

    Args:
        factor: pixels of an image token's side; both sides become multiples of it.
        options: from :func:`image_options`.

    Raises:
        BadCell: with the size and the limit.
    """
    if "resized_height" in options and "resized_width" in options:
        width, height = options["resized_width"], options["resized_height"]
        options = {}
    most = options.get("max_pixels", 16384 * factor**2)
    least = options.get("min_pixels", 4 * factor**2)
    if least > most:
        found = f"min_pixels={least} (4 tokens by default) is above max_pixels={most}"
        raise BadCell("images", found, "set both, or raise max_pixels")
    rounded = [max(round(side / factor), 1) * factor for side in (width, height)]
    if math.prod(rounded) <= most:
        return
    shrink = math.sqrt(width * height / most)
    if min(math.floor(side / shrink / factor) for side in (width, height)) < 1:
        found = f"image is {width} x {height} pixels, max_pixels={most} leaves no row of tokens"
        raise BadCell("images", found, "pad or crop the image, raise max_pixels, or drop the row")


def image_source(entry: object) -> bytes | str:
    """The encoded image, or its path or address; a data URI is decoded.

    Raises:
        BadCell: neither bytes, a string nor a struct with `bytes`, `path` or `image` set.
    """
    source = _source(entry)
    if isinstance(source, bytes | str):
        return source
    raise BadCell("images", f"an image is {shown(entry)}", _ENTRY_FORMS)


def is_remote(source: bytes | str) -> bool:
    """Whether the image has to be downloaded."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def is_data_uri(source: object) -> bool:
    """Whether the address contains the image itself."""
    return isinstance(source, str) and source[: len(_DATA_URI)].lower() == _DATA_URI


def check_file(source: str) -> None:
    """Raises BadCell if there is no file at a path; it is not opened."""
    with _readable(_name(source)):
        local_path(source).stat()


def local_path(source: str) -> Path:
    """The file that a path or a `file://` address names; `~` is the home folder."""
    if not source.lower().startswith("file://"):
        return Path(os.path.expanduser(source))
    path = Path(source[len("file://") :].removeprefix("localhost"))
    return path if path.exists() else Path(unquote(str(path)))


def _source(entry: object) -> bytes | str | Image.Image | np.ndarray:
    """The content of an entry, without its struct."""
    if isinstance(entry, SizedImage):
        return entry.source
    if isinstance(entry, dict):
        fields = (entry.get(name) for name in ("bytes", "image", "path"))
        entry = next((field for field in fields if _is_set(field)), entry)
    if isinstance(entry, bytearray | memoryview):
        return bytes(entry)
    if isinstance(entry, bytes | Image.Image | np.ndarray) and _is_set(entry):
        return entry
    if isinstance(entry, Path) or (isinstance(entry, str) and entry.strip()):
        return _named(str(entry))
    raise BadCell("images", f"an image is {shown(entry)}", _ENTRY_FORMS)


def _named(text: str) -> bytes | str:
    """A data URI decoded; a path or an address as it is."""
    if is_data_uri(text):
        return _decoded_uri(text)
    address = _ADDRESS.match(text)
    if address and address[0].lower() not in ("http://", "https://", "file://"):
        found = f"an address of an unknown kind: {_name(text)}"
        raise BadCell("images", found, "download the image and give its path")
    if "\0" in text:
        raise BadCell("images", f"a path with a zero byte: {_name(text)}", _CORRECT_PATH)
    return text


def _is_set(value: Any) -> bool:
    return value is not None and (not isinstance(value, bytes | str) or len(value) > 0)


def _decoded_uri(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    try:
        if not comma:
            raise ValueError("it has no comma")
        data = unquote_to_bytes(body)
        is_base64 = head.lower().endswith(";base64")
        decoded = base64.b64decode(data, validate=True) if is_base64 else data
        if not decoded:
            raise ValueError("it is empty")
        return decoded
    except ValueError as error:
        found = f"a data URI that cannot be decoded ({error}): {shown(uri)}"
        raise BadCell("images", found, "write data:image/png;base64,...") from error


def _file(source: bytes | str) -> io.BytesIO | Path:
    return io.BytesIO(source) if isinstance(source, bytes) else local_path(source)


def _name(source: bytes | str) -> str:
    if isinstance(source, bytes) or is_data_uri(source):
        return shown(source)
    cut = source[:_SHOWN_PATH]
    return repr(source) if cut == source else f"{cut!r}... ({len(source)} characters)"


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
    """Turn errors into a BadCell that names the image."""
    try:
        yield
    except BadCell:
        raise
    except FileNotFoundError as error:
        raise BadCell("images", f"no file {name}", _CORRECT_PATH) from error
    except UnidentifiedImageError as error:  # whose text may name an object in memory
        found = f"cannot read {name}: it is no image of a known format"
        raise BadCell("images", found, _REPLACE) from error
    except IMAGE_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadCell("images", f"cannot read {name}: {shortened(reason)}", _REPLACE) from error


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
    """Whether a PNG file has text or EXIF after its pixels."""
    kinds = list(_png_chunks(image)) if image.format == "PNG" else []
    return b"IDAT" in kinds and any(kind in _LATE_CHUNKS for kind in kinds[kinds.index(b"IDAT") :])


def _is_complete(image: Image.Image) -> bool:
    """Whether the file has its format's end mark; False if the format has none."""
    file = getattr(image, "fp", None)
    if file is None:
        return False
    num_bytes = file.seek(0, io.SEEK_END)
    if image.format == "PNG":
        return b"IEND" in _png_chunks(image)
    if image.format in ("JPEG", "MPO"):
        return b"\xff\xd9" in _read_at(file, max(num_bytes - _JPEG_TAIL, 0), _JPEG_TAIL)
    if image.format == "GIF":
        return _read_at(file, num_bytes - 1, 1) == b";"
    if image.format == "WEBP":
        return num_bytes >= 8 + int.from_bytes(_read_at(file, 4, 4), "little")
    return False


def _png_chunks(image: Image.Image) -> Iterator[bytes]:
    """Kinds of the chunks of an open PNG file, up to the end or to where it is cut off."""
    file = getattr(image, "fp", None)
    if file is None:
        return
    position, end = 8, file.seek(0, io.SEEK_END)  # after the signature
    while len(head := _read_at(file, position, 8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        position += 12 + length  # length and kind before the chunk, a checksum after it
        if position > end:
            return
        yield kind
        if kind == b"IEND":
            return


def _read_at(file: Any, position: int, num_bytes: int) -> bytes:
    file.seek(position)
    return bytes(file.read(num_bytes))


class StoredImage(Image.Image):
    """A PIL image with the pixels of :func:`load_image`, decoded on first use.

    Copies and pickles hold the encoded image or its path, so that an image is sent from the data
    loader to the agent loops and into the replay buffer at the size of its file.

    Args:
        entry: as for :func:`load_image`, except PIL images and arrays.
        where: the row it is from, for messages.

    Raises:
        BadCell: `entry` names no image.
        RowError: on first use, if it cannot be decoded.
    """

    def __init__(self, entry: object, where: str = "") -> None:
        super().__init__()
        self.source = image_source(entry)
        """The encoded image, or the path or address where it is."""
        self.where = where

    @property
    def mode(self) -> str:
        return "RGB"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the header if that is certain."""
        if self._im is None and not is_remote(self.source):
            try:
                header = read_header(self.source)
            except Exception as error:
                raise self._problem(error) from error
            if header.has_exact_size:
                return header.width, header.height
        self.load()
        return self._size

    def load(self) -> Any:
        if self._im is None:
            try:
                image = load_image(self.source, fetch=True)
            except BadCell as error:
                raise self._problem(error) from error
            self._im, self._mode, self._size = image.im, image.mode, image.size
        return super().load()

    def _problem(self, error: Exception) -> RowError:
        return RowError(f"{self.where}, {error}" if self.where else str(error))

    def __getstate__(self) -> tuple[bytes | str, str]:  # type: ignore[override]
        return self.source, self.where

    def __setstate__(self, state: tuple[bytes | str, str]) -> None:  # type: ignore[override]
        source, where = state
        StoredImage.__init__(self, source, where)


def stored_images(messages: list[dict[str, Any]]) -> list[StoredImage]:
    """The stored images of a prompt, in order."""
    return [
        part["image"]
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if isinstance(part.get("image"), StoredImage)
    ]
