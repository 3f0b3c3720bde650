"""Images of sampled prompts: small files for the run folder, `data:` URIs for the report."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from vapo_verl.data.images import IMAGE_ERRORS, StoredImage, is_remote, load_image

MAX_IMAGES = 4
"""Images kept of one prompt, the first ones."""
MAX_SIDE = 512
"""Longer sides are scaled down to this many pixels."""
_LOSSLESS_SIDE = 128
_JPEG_QUALITY = 85


def image_parts(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The image parts of a prompt in veRL's form."""
    return [
        part
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part.get("type") == "image"
    ]


def small_images(images: Sequence[Any]) -> list[bytes | None]:
    """The first images of a prompt, encoded again by :func:`small_image`.

    None stands for one that is at a remote address or cannot be read.

    Args:
        images: parts of messages, or anything that :func:`load_image` takes.
    """
    return [_encoded(image) for image in images[:MAX_IMAGES]]


def small_image(image: Image.Image) -> bytes:
    """PNG or JPEG of at most ``MAX_SIDE`` pixels a side, of the pixels that the model sees.

    It holds no metadata, so that no viewer rotates it.
    """
    pixels = load_image(image)
    pixels.thumbnail((MAX_SIDE, MAX_SIDE))
    kind = "PNG" if max(pixels.size) <= _LOSSLESS_SIDE else "JPEG"
    buffer = io.BytesIO()
    pixels.save(buffer, kind, quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _encoded(entry: Any) -> bytes | None:
    image = entry.get("image") if isinstance(entry, Mapping) else entry
    if isinstance(image, StoredImage) and is_remote(image.source):
        return None  # the trainer downloads nothing for a picture in the report
    try:
        return small_image(load_image(entry))
    except IMAGE_ERRORS:
        return None


def image_uri(data: bytes) -> str:
    """``data:`` address of the image, decoded and encoded again; empty if it cannot be read.

    Only pixels get into the page; other content of the bytes is dropped.
    """
    try:
        encoded = small_image(load_image(data))
    except IMAGE_ERRORS:
        return ""
    kind = "png" if encoded.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode('ascii')}"
