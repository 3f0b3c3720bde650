"""An image of a rollout file, as the page holds it."""

from __future__ import annotations

import base64
import io

from PIL import Image

from vapo_verl.data.image_cell import IMAGE_ERRORS
from vapo_verl.trainer.sample_images import small_image


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
