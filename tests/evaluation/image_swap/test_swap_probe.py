"""Which image a row gets in place of its own."""

import io

import numpy as np
import pytest
from PIL import Image

from vapo_verl.evaluation.image_swap.swap_probe import (
    blank,
    donor_rows,
    draw_donors,
    image_donors,
    swapped,
)
from vapo_verl.evaluation.probing.rows import Row
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


def rows_of(*colours):
    """A row for each colour, with an image of it; equal colours are equal images."""
    rows = []
    for number, colour in enumerate(colours):
        file = io.BytesIO()
        Image.new("RGB", (28, 28), colour).save(file, "PNG")
        row = Row(
            number=10 + number,
            data_source="made up",
            index=None,
            messages=(),
            images=(file.getvalue(),),
            ground_truth="1",
            style="exact",
            claims=(),
        )
        rows.append(row)
    return rows


@pytest.mark.parametrize("seed", range(20))
def test_rows_on_one_image_are_no_donors_of_each_other(seed):
    rows = rows_of("red", "red", "blue", "green", "red", "blue")
    donors = donor_rows(rows, seed)
    assert donors.keys() == {row.number for row in rows}
    for row in rows:
        assert donors[row.number].images != row.images
        assert donors[row.number].number in (10, 12, 13)  # the first row with each image
    assert donors[10] == donors[11] == donors[14]


def test_two_images_of_many_rows_exchange():
    rows = rows_of(*["red"] * 9, "blue")
    donors = donor_rows(rows, seed=0)
    assert [donors[row.number].number for row in rows] == [19] * 9 + [10]


@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_single_image_has_none_to_exchange_with(num_rows):
    with pytest.raises(RunError, match=f"the {num_rows} drawn rows hold 1 different image, .*give"):
        donor_rows(rows_of(*["red"] * num_rows), seed=0)


def test_rows_without_images_are_no_donors():
    red, blue = (row.images for row in rows_of("red", "blue"))
    assert image_donors([red, (), red], seed=0) == {}
    assert image_donors([(), red, blue, ()], seed=0) == {red: blue, blue: red}


def test_exchanged_images_keep_the_size():
    own = [Image.new("RGB", (4, 2), "red"), Image.new("RGB", (2, 2), "red")]
    others = [Image.new("RGB", (6, 6), "blue")]
    for image, other in zip(own, swapped(own, others), strict=True):
        assert other.size == image.size
        assert other.getpixel((0, 0)) == (0, 0, 255)
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    pixels[0] = 100
    assert (np.asarray(blank(Image.fromarray(pixels))) == 50).all()
