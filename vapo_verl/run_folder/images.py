"""Images of sampled prompts: small files for the run folder, `data:` URIs for the report."""

import base64
import io
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

from vapo_verl.data.errors import BadCell
from vapo_verl.data.image_cell import (
    IMAGE_ERRORS,
    image_file,
    image_source,
    is_remote,
    on_white,
)

MAX_IMAGES = 4
"""Images kept of one prompt, the first ones."""
MAX_SIDE = 512
"""Longer sides are scaled down to this many pixels."""
_LOSSLESS_SIDE = 128
_JPEG_QUALITY = 85


def prompt_images(messages: Iterable[Mapping[str, Any]]) -> list[bytes | None]:
    """The first images of a prompt in veRL's form, encoded anew by :func:`small_image`.

    None stands for one that is at a remote address or cannot be read.
    """
    entries = [
        part
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part.get("type") == "image"
    ]
    return [_encoded(entry) for entry in entries[:MAX_IMAGES]]


def small_image(image: Image.Image) -> bytes:
    """PNG or JPEG of at most ``MAX_SIDE`` pixels a side, on white where it is transparent.

    It holds the pixels alone: neither metadata, by which a viewer would turn the image though the
    model saw it as it is, nor anything else the file had.
    """
    pixels = on_white(image)
    pixels.thumbnail((MAX_SIDE, MAX_SIDE))
    kind = "PNG" if max(pixels.size) <= _LOSSLESS_SIDE else "JPEG"
    buffer = io.BytesIO()
    pixels.save(buffer, kind, quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _encoded(entry: dict[str, Any]) -> bytes | None:
    try:
        if isinstance(entry.get("image"), Image.Image):
            return small_image(entry["image"])
        source = image_source(entry)
        if is_remote(source):
            return None
        with Image.open(image_file(source)) as image:
            return small_image(image)
    except (BadCell, *IMAGE_ERRORS):
        return None


def image_uri(data: bytes) -> str:
    """``data:`` address of the image, decoded and encoded anew; empty where it cannot be read.

    Only pixels get into the page: what else the bytes hold stays behind.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            encoded = small_image(image)
    except IMAGE_ERRORS:
        return ""
    kind = "png" if encoded.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode('ascii')}"
