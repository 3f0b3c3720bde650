"""An image file in the form an endpoint takes."""

import io
from dataclasses import dataclass

from PIL import Image

from vapo_verl.data.errors import BadCell
from vapo_verl.data.images import IMAGE_ERRORS, ImageHeader, load_image, read_header

SENT_AS_THEY_ARE = ("image/png", "image/jpeg", "image/webp", "image/gif")
"""The formats that OpenAI-compatible endpoints take; others are sent as PNG."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An encoded image to be sent."""

    data: bytes
    media_type: str


def num_pixels(data: bytes) -> int:
    """Width times height, from the file's header. Raises BadCell when it cannot be read."""
    header = _header(data)
    return header.width * header.height


def prepare(data: bytes, media_type: str, max_pixels: int | None = None) -> Picture:
    """The image for an endpoint, which sees what :func:`vapo_verl.data.images.load_image` gives.

    The stored bytes are sent as they are where an endpoint can take them, and no decoder can read
    them otherwise; else, as for a transparent image or one that EXIF turns, its pixels in PNG.

    Args:
        max_pixels: larger images are shrunk to it, their shape kept, and sent as PNG.

    Raises:
        BadCell: the image cannot be read.
    """
    header = _header(data)
    too_large = max_pixels is not None and header.width * header.height > max_pixels
    if media_type in SENT_AS_THEY_ARE and header.is_plain and not too_large:
        return Picture(data=data, media_type=media_type)
    try:
        image = load_image(data)
    except BadCell as error:
        raise _unreadable(error) from error
    if too_large and max_pixels is not None:
        scale = (max_pixels / (image.width * image.height)) ** 0.5
        size = (max(int(image.width * scale), 1), max(int(image.height * scale), 1))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Picture(data=buffer.getvalue(), media_type="image/png")


def _header(data: bytes) -> ImageHeader:
    try:
        return read_header(data)
    except IMAGE_ERRORS as error:
        raise _unreadable(error) from error


def _unreadable(error: BaseException) -> BadCell:
    found = error.found if isinstance(error, BadCell) else str(error)
    return BadCell("images", f"cannot decode the image: {found}", "replace it or drop the row")
