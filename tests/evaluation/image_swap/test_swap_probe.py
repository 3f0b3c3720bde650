"""Which image a row gets in place of its own."""

import numpy as np
import pytest
from PIL import Image

from vapo_verl.evaluation.image_swap.swap_probe import blank, draw_donors, swapped
from vapo_verl.run_folder import RunError

SMALL, LARGE = ((56, 56),), ((84, 56),)


def test_rows_exchange_within_their_size():
    sizes = [SMALL, LARGE] * 10
    donors = draw_donors(sizes, seed=0)
    for place, donor in enumerate(donors):
        assert donor != place
        assert sizes[donor] == sizes[place]
    assert sorted(donors) == list(range(20))
    assert draw_donors(sizes, seed=0) == donors
    assert draw_donors(sizes, seed=1) != donors


@pytest.mark.parametrize("seed", range(20))
def test_a_row_alone_with_its_size_gets_any_other(seed):
    donors = draw_donors([SMALL, LARGE, SMALL], seed)
    assert donors[1] in (0, 2)
    assert (donors[0], donors[2]) == (2, 0)


def test_one_row_has_nobody_to_exchange_with():
    with pytest.raises(RunError, match="--num-rows 2"):
        draw_donors([SMALL], seed=0)


def test_exchanged_images_keep_the_size():
    own = [Image.new("RGB", (4, 2), "red"), Image.new("RGB", (2, 2), "red")]
    others = [Image.new("RGB", (6, 6), "blue")]
    for image, other in zip(own, swapped(own, others), strict=True):
        assert other.size == image.size
        assert other.getpixel((0, 0)) == (0, 0, 255)
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    pixels[0] = 100
    assert (np.asarray(blank(Image.fromarray(pixels))) == 50).all()
