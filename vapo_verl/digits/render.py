"""Drawing a scene: every cell fills a 28-pixel square, one merged token of the vision tower."""

import io
import random
from functools import cache

import numpy as np
from PIL import Image

from vapo_verl.digits.scene import Cell, Scene, load_scans

CELL_PIXELS = 28
"""Patch size 14 times spatial merge size 2."""
_GLYPH_PIXELS = 24
_MARGIN = (CELL_PIXELS - _GLYPH_PIXELS) // 2
_RGB = {
    "red": (255, 40, 40),
    "green": (40, 220, 40),
    "blue": (60, 90, 255),
    "yellow": (255, 240, 40),
}


def render(scene: Scene, seed: int | str) -> Image.Image:
    """Draw a scene as an RGB image of `28 * cols` by `28 * rows` pixels.

    Args:
        scene: what to draw.
        seed: of the jitter, which moves each digit by up to two pixels inside its cell.
    """
    return Image.fromarray(render_pixels(scene, random.Random(seed)))


def render_pixels(scene: Scene, rng: random.Random) -> np.ndarray:
    """Draw a scene as uint8 [28 * rows, 28 * cols, 3]; see `render`."""
    cells = [_cell_pixels(cell, rng) for cell in scene.cells]
    grid = np.stack(cells).reshape(scene.rows, scene.cols, CELL_PIXELS, CELL_PIXELS, 3)
    return grid.swapaxes(1, 2).reshape(scene.rows * CELL_PIXELS, scene.cols * CELL_PIXELS, 3)


def png_bytes(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _cell_pixels(cell: Cell, rng: random.Random) -> np.ndarray:
    top, left = (_MARGIN + rng.randint(-_MARGIN, _MARGIN) for _ in range(2))
    pixels = np.zeros((CELL_PIXELS, CELL_PIXELS, 3), dtype=np.uint8)
    pixels[top : top + _GLYPH_PIXELS, left : left + _GLYPH_PIXELS] = _glyph(cell.scan, cell.color)
    return pixels


@cache
def _glyph(scan: int, color: str) -> np.ndarray:
    ink = (load_scans()[0][scan] * 255).astype(np.uint8)
    size = (_GLYPH_PIXELS, _GLYPH_PIXELS)
    scaled = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BILINEAR))
    return (scaled[..., None] / 255.0 * np.array(_RGB[color])).astype(np.uint8)
