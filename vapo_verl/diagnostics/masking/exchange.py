"""Images in place of a row's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from vapo_verl.diagnostics.errors import RunError

Sizes = tuple[tuple[int, int], ...]
"""Width and height of each image of a row."""


def draw_donors(sizes: Sequence[Sizes], seed: int) -> list[int]:
    """For each row another one, of the same number and sizes of images where there is one.

    Rows of equal sizes exchange in a drawn circle; one alone with its sizes gets any other.

    Returns:
        The place of that other row in `sizes`, for each.

    Raises:
        RunError: there is one row only.
    """
    if len(sizes) == 1:
        raise RunError("masking takes the images of another row: give --num-rows 2 or more")
    rng = np.random.default_rng(seed)
    groups: dict[Sizes, list[int]] = {}
    for place, of_row in enumerate(sizes):
        groups.setdefault(of_row, []).append(place)
    donors: dict[int, int] = {}
    for group in groups.values():
        circle = [group[i] for i in rng.permutation(len(group))]
        if len(circle) == 1:
            donors[circle[0]] = (circle[0] + int(rng.integers(1, len(sizes)))) % len(sizes)
        else:
            donors |= zip(circle, circle[1:] + circle[:1], strict=True)
    return [donors[place] for place in range(len(sizes))]


def swapped(
    images: Sequence[Image.Image], others: Sequence[Image.Image]
) -> tuple[Image.Image, ...]:
    """The other images at the sizes of `images`; they come round where there are fewer."""
    return tuple(
        others[number % len(others)].resize(image.size) for number, image in enumerate(images)
    )


def blank(image: Image.Image) -> Image.Image:
    """The image's mean colour all over."""
    red, green, blue = np.asarray(image.convert("RGB"), dtype=float).mean(axis=(0, 1)).round()
    return Image.new("RGB", image.size, (int(red), int(green), int(blue)))
