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

MAX_ASPECT_RATIO = 200
"""Qwen's image processors refuse images longer than this many times their width, or the reverse."""

IMAGE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on a file that is no image, or a damaged one."""

HEADER_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF")
"""Formats whose header states the size of the decoded image, as Pillow opens them. An icon, for
one, may turn out larger when it is decoded."""

FETCH_TIMEOUT_S = 60.0

_DATA_URI = "data:"
_ENTRY_FORMS = "write a path, or {bytes, path} with one of them set"
_REPLACE = "replace the image or drop the row"
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what shows the image upright; 1 needs nothing."""
_SIDEWAYS = (5, 6, 7, 8)
"""Orientations that exchange width and height."""
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of more than 8 bits a channel."""
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
            return _upright_rgb(_from_array(source) if isinstance(source, np.ndarray) else source)
    if isinstance(source, str) and is_remote(source):
        if not fetch:
            raise BadCell("images", f"an address: {source!r}", "download it and give its path")
        source = _fetched(source)
    with _readable(_name(source)), Image.open(_file(source, base)) as image:
        return _upright_rgb(image)


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
    _check_size(header.width, header.height)
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


def _check_size(width: int, height: int) -> None:
    if not (width and height):
        raise BadCell("images", f"image is {width} x {height} pixels, empty", _REPLACE)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        found = f"image is {width} x {height} pixels, ratio over {MAX_ASPECT_RATIO}"
        raise BadCell("images", found, "pad or crop the image, or drop the row")


def _header(image: Image.Image) -> ImageHeader:
    is_tiff = image.format == "TIFF"  # Pillow turns these when it decodes, and says so in `size`
    orientation = _orientation(image, from_header=True)
    width, height = image.size
    if orientation in _SIDEWAYS and not is_tiff:
        width, height = height, width
    has_exact_size = image.format in HEADER_FORMATS and not _has_late_chunks(image)
    is_deep, is_transparent = _is_deep(image), image.has_transparency_data
    return ImageHeader(
        format=image.format or "",
        width=width,
        height=height,
        has_exact_size=has_exact_size,
        is_turned=orientation != 1,
        is_transparent=is_transparent,
        is_deep=is_deep,
        is_plain=(
            has_exact_size
            and orientation == 1
            and not (is_deep or is_transparent)
            and image.mode in ("1", "L", "P", "RGB")
            and not getattr(image, "is_animated", False)
        ),
    )


def _orientation(image: Image.Image, *, from_header: bool = False) -> int:
    """1 where there is none, or none that can be read."""
    try:
        # PngImageFile.getexif decodes the image
        exif = Image.Image.getexif(image) if from_header else image.getexif()
        orientation = exif.get(_ORIENTATION, 1)
    except IMAGE_ERRORS:
        return 1
    return orientation if orientation in _TURNS else 1


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


def _is_deep(image: Image.Image) -> bool:
    return image.mode in _DEEP_MODES or ";16" in _raw_mode(image)


def _raw_mode(image: Image.Image) -> str:
    """How Pillow reads the pixels that the file stores: `RGB;16B`; empty once they are decoded."""
    for tile in getattr(image, "tile", ()):
        args = tile[3]
        return str(args[0] if isinstance(args, tuple) and args else args or "")
    return ""


def _upright_rgb(image: Image.Image) -> Image.Image:
    _check_size(*image.size)
    raw_mode = _raw_mode(image)
    image.load()
    turn = _TURNS.get(_orientation(image))
    rgb = _on_white(image, raw_mode)
    upright = rgb.transpose(turn) if turn is not None else rgb
    upright.info = {}  # with its EXIF it would be turned once more
    return upright


def _on_white(image: Image.Image, raw_mode: str) -> Image.Image:
    if image.mode in _DEEP_MODES:
        values = np.asarray(image)
        grey = Image.fromarray(_scaled(values, is_16_bit=image.mode != "F"))
        if "transparency" in image.info:
            grey.putalpha(Image.fromarray(np.uint8(255) * (values != image.info["transparency"])))
        image = grey
    if not image.has_transparency_data:
        return image.convert("RGB")
    over = _with_8_bit_transparency(image, raw_mode).convert("RGBA")
    white = Image.new("RGBA", over.size, "white")
    return Image.alpha_composite(white, over).convert("RGB")


def _with_8_bit_transparency(image: Image.Image, raw_mode: str) -> Image.Image:
    """A PNG file names its transparent colour in its own bits; Pillow scales the pixels alone."""
    colour = image.info.get("transparency")
    if raw_mode in ("L;2", "L;4") and isinstance(colour, int):
        scaled: int | tuple[int, ...] = colour * {"L;2": 85, "L;4": 17}[raw_mode]
    elif raw_mode == "RGB;16B" and isinstance(colour, tuple):
        scaled = tuple(value >> 8 for value in colour)
    else:
        return image
    copy = image.copy()
    copy.info["transparency"] = scaled
    return copy


def _scaled(values: np.ndarray, *, is_16_bit: bool) -> np.ndarray:
    """Values of more than 8 bits as uint8."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):  # nan is neither
        found = f"its values go from {low:g} to {high:g}"
        raise BadCell("images", found, "store it with 8 or 16 bits a channel, or drop the row")
    top = 65535.0 if is_16_bit else next(top for top in (1.0, 255.0, 65535.0) if high <= top)
    return np.rint(values.astype(np.float64) * (255.0 / top)).astype(np.uint8)


def _from_array(values: np.ndarray) -> Image.Image:
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if not (values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (2, 3, 4))):
        found = f"an array of shape {values.shape}"
        raise BadCell("images", found, "give height x width x channels")
    if not values.size:
        raise BadCell("images", f"an array of shape {values.shape}, empty", _REPLACE)
    if values.dtype == bool:
        values = values * np.uint8(255)
    elif values.dtype == np.uint16 or values.dtype.kind == "f":
        values = _scaled(values, is_16_bit=values.dtype == np.uint16)
    elif values.dtype != np.uint8:
        found = f"an array of {values.dtype}"
        raise BadCell("images", found, "give uint8, uint16, bool or float")
    return Image.fromarray(np.ascontiguousarray(values))
