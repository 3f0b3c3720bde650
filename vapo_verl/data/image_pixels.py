"""The pixels of an image: upright, on white, in 8 bits. Pure: it opens no file.

:func:`vapo_verl.data.images.load_image` states the rule.
"""

import struct

import numpy as np
from PIL import Image

from vapo_verl.data.errors import BadCell

MAX_ASPECT_RATIO = 200
"""Qwen's image processors refuse images longer than this many times their width, or the reverse."""

IMAGE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,  # of the decoder of AVIF
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on a file that is no image, or a damaged one."""

_ORIENTATION_TAG = 0x0112
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
SIDEWAYS = (5, 6, 7, 8)
"""Orientations that exchange width and height."""
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of more than 8 bits a channel."""
_REPLACE = "replace the image or drop the row"


def upright_rgb(image: Image.Image) -> Image.Image:
    """The current frame, the first of an opened file. Raises BadCell on bad sizes and values."""
    check_size(*image.size)
    raw_mode = _raw_mode(image)
    image.load()
    turn = _TURNS.get(orientation(image))
    rgb = _on_white(image, raw_mode)
    upright = rgb.transpose(turn) if turn is not None else rgb
    upright.info = {}  # with its EXIF it would be turned a second time
    return upright


def from_array(values: np.ndarray) -> Image.Image:
    """Height x width, or height x width x 1 to 4 channels, of uint8, uint16, bool or float."""
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


def check_size(width: int, height: int) -> None:
    """Raises BadCell on an empty image, and on one that is far longer than wide or the reverse."""
    if not (width and height):
        raise BadCell("images", f"image is {width} x {height} pixels, empty", _REPLACE)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        found = f"image is {width} x {height} pixels, ratio over {MAX_ASPECT_RATIO}"
        raise BadCell("images", found, "pad or crop the image, or drop the row")


def orientation(image: Image.Image, *, from_header: bool = False) -> int:
    """Orientation in EXIF, or else in XMP: 1 to 8; 1 if it is absent or unreadable."""
    try:
        # PngImageFile.getexif decodes the image
        exif = Image.Image.getexif(image) if from_header else image.getexif()
        found = exif.get(_ORIENTATION_TAG, 1)
    except IMAGE_ERRORS:
        return 1
    return found if found in _TURNS else 1


def is_deep(image: Image.Image) -> bool:
    """Whether the file has more than 8 bits a channel; call it before the image is decoded."""
    return image.mode in _DEEP_MODES or ";16" in _raw_mode(image)


def _raw_mode(image: Image.Image) -> str:
    """Pillow's mode of the stored pixels, such as `RGB;16B`; empty once they are decoded."""
    for tile in getattr(image, "tile", ()):
        args = tile[3]
        return str(args[0] if isinstance(args, tuple) and args else args or "")
    return ""


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
    """Scale a PNG's transparent colour, which has the file's bits; Pillow scales only pixels."""
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
