"""Looks through a source before anything is asked: how many images, about how many tokens."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from vapo_verl.claims.images import ImageItem, OnProblem, iter_images
from vapo_verl.claims.options import RunOptions
from vapo_verl.claims.requests.picture import num_pixels
from vapo_verl.claims.shards.record import Usage
from vapo_verl.data.errors import BadCell

PIXELS_PER_TOKEN = 28 * 28
"""Of Qwen2.5-VL, one merged vision token. Other models count otherwise, by up to a few times."""
CHARACTERS_PER_TOKEN = 4
_UNKNOWN_PIXELS = 512 * 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a run has before it."""

    num_images: int
    """Different images of the source."""
    num_stored: int
    """Of these, stored already: not asked for again."""
    estimate: Usage
    """Of the images still to do, were every first answer complete; re-queries come on top."""

    @property
    def num_to_do(self) -> int:
        return self.num_images - self.num_stored


def source_images(options: RunOptions, on_problem: OnProblem) -> Iterator[ImageItem]:
    """The images that the options name, stored ones among them."""
    images = iter_images(
        options.source, options.column, base=options.image_root, on_problem=on_problem
    )
    return islice(images, options.limit)


def take_survey(
    images: Iterable[ImageItem], stored_keys: Collection[str], cost: Callable[[ImageItem], Usage]
) -> Survey:
    """Go through `images` once; `cost` estimates the requests and tokens of one."""
    num_images = num_stored = 0
    estimate = Usage()
    for item in images:
        num_images += 1
        if item.key in stored_keys:
            num_stored += 1
        else:
            estimate += cost(item)
    return Survey(num_images=num_images, num_stored=num_stored, estimate=estimate)


def image_tokens(item: ImageItem, max_pixels: int | None) -> int:
    """An estimate from the size in the image's header."""
    try:
        pixels = num_pixels(item.data)
    except BadCell:
        pixels = _UNKNOWN_PIXELS
    return max(min(pixels, max_pixels or pixels) // PIXELS_PER_TOKEN, 1)


def text_tokens(text: str) -> int:
    return len(text) // CHARACTERS_PER_TOKEN
