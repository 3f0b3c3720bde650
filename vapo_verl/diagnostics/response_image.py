"""A response's image, small: a page holds a hundred of them."""

from __future__ import annotations

import base64
import io

from PIL import Image

MAX_SIDE = 512
"""Longer sides are scaled down to this many pixels."""
_LOSSLESS_SIDE = 128
_JPEG_QUALITY = 85


def image_uri(data: object) -> str:
    """``data:`` address of the image, decoded and encoded anew; empty where `data` is none.

    Only pixels get into the page: what else a file holds stays behind. What is transparent is shown
    on white.
    """
    if not isinstance(data, bytes):
        return ""
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = _on_white(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ""
    pixels.thumbnail((MAX_SIDE, MAX_SIDE))
    kind = "png" if max(pixels.size) <= _LOSSLESS_SIDE else "jpeg"
    buffer = io.BytesIO()
    pixels.save(buffer, kind, quality=_JPEG_QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    over = image.convert("RGBA")
    white = Image.new("RGBA", over.size, "white")
    return Image.alpha_composite(white, over).convert("RGB")
