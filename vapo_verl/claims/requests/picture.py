"""An image file in the form an endpoint takes."""

import io
from dataclasses import dataclass

from PIL import Image

from vapo_verl.data.errors import BadCell
from vapo_verl.data.image_cell import IMAGE_ERRORS

SENT_AS_THEY_ARE = ("image/png", "image/jpeg", "image/webp", "image/gif")
"""The formats that OpenAI-compatible endpoints take; others are sent as PNG."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An encoded image to be sent."""

    data: bytes
    media_type: str


def num_pixels(data: bytes) -> int:
    """Width times height, from the file's header. Raises BadCell when it cannot be read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.width * image.height
    except IMAGE_ERRORS as error:
        raise _unreadable(error) from error


def prepare(data: bytes, media_type: str, max_pixels: int | None = None) -> Picture:
    """The stored bytes as they are, where an endpoint can take them; else encoded anew.

    Args:
        max_pixels: larger images are shrunk to it, their shape kept, and sent as PNG.

    Raises:
        BadCell: the image has to be decoded, and cannot be.
    """
    too_large = max_pixels is not None and num_pixels(data) > max_pixels
    if media_type in SENT_AS_THEY_ARE and not too_large:
        return Picture(data=data, media_type=media_type)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = opened.convert("RGB")
    except IMAGE_ERRORS as error:
        raise _unreadable(error) from error
    if too_large and max_pixels is not None:
        scale = (max_pixels / (image.width * image.height)) ** 0.5
        size = (max(int(image.width * scale), 1), max(int(image.height * scale), 1))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Picture(data=buffer.getvalue(), media_type="image/png")


def _unreadable(error: BaseException) -> BadCell:
    return BadCell("images", f"cannot decode the image: {error}", "replace it or drop the row")
