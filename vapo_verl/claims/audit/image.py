"""Images made small enough for a page of many, and large enough to judge claims by."""

import base64
import io
from dataclasses import dataclass

from PIL import Image

from vapo_verl.data.errors import BadCell
from vapo_verl.data.image_cell import IMAGE_ERRORS, on_white

MAX_SIDE = 1280
"""Longer sides are scaled down to this many pixels: small print stays legible."""
_MAX_LOSSLESS_BYTES = 300_000
_JPEG_QUALITY = 88


@dataclass(frozen=True, slots=True, kw_only=True)
class PageImage:
    """An image as a page holds it."""

    uri: str
    """`data:image/...;base64,...`"""
    width: int
    """Pixels; so is `height`."""
    height: int


def page_image(data: bytes) -> PageImage:
    """`data` encoded anew, at most MAX_SIDE pixels long.

    Its metadata is left behind: a browser would turn the image by it, and the model did not. What
    is transparent is shown on white.

    Raises:
        BadCell: not an image, or a damaged one.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            lossless = image.format != "JPEG"
            pixels = on_white(image)
    except IMAGE_ERRORS as error:
        found = f"cannot decode an image: {error}"
        raise BadCell("images", found, "replace the image, or delete its claims") from error
    pixels.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    encoded, kind = b"", "png"
    if lossless:
        encoded = _encoded(pixels, "PNG", optimize=True)
    if not encoded or len(encoded) > _MAX_LOSSLESS_BYTES:
        encoded, kind = _encoded(pixels, "JPEG", quality=_JPEG_QUALITY, subsampling=0), "jpeg"
    text = base64.b64encode(encoded).decode("ascii")
    uri = f"data:image/{kind};base64,{text}"
    return PageImage(uri=uri, width=pixels.width, height=pixels.height)


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
