"""Which image a row gets in place of its own."""

import io
import operator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vapo_verl.data.images import SizedImage
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


def shown_as(rows, seed):
    """Number of a row -> the donor's number, and the images that it is shown with."""
    donors = donor_rows(rows, seed)
    return {number: (donor.number, donor.images) for number, donor in donors.items()}


@pytest.mark.parametrize("seed", range(5))
def test_no_image_stands_in_its_own_place(seed):
    a, b, c, d = (row.images[0] for row in rows_of("red", "blue", "green", "grey"))
    one, other = (replace(rows_of("red")[0], number=n) for n in (1, 2))
    pair = [replace(one, images=(a, b)), replace(other, images=(a, c))]
    # c is of the same size as b: the other order of the same row
    assert shown_as(pair, seed) == {1: (2, (c, a)), 2: (1, (b, a))}
    third = replace(one, number=3, images=(c, d))
    shown = shown_as([*pair, third], seed)
    assert shown[1] == shown[2] == (3, (c, d))
    for row in [*pair, third]:
        assert all(map(operator.ne, row.images, shown[row.number][1]))
    # the one image of (a,) is cycled, and stands in the first place of (a, b)
    with pytest.raises(RunError, match="DATA row 1: no other drawn row has images that differ"):
        donor_rows([pair[0], replace(other, images=(a,))], seed)


def test_options_for_size_make_another_row_and_no_other_picture():
    [red, blue] = (row.images[0] for row in rows_of("red", "blue"))
    small, large = (SizedImage(red, (("max_pixels", pixels),)) for pixels in (784, 1568))
    assert image_donors([(small,), (large,)], seed=0) == {}
    donors = image_donors([(small,), (large,), (blue,)], seed=0)
    assert (donors[small,], donors[large,]) == ((blue,), (blue,))
