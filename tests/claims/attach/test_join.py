import pytest

from vapo_verl.claims.attach.join import about_image, join_claims
from vapo_verl.data.claims_column import Claim

CAR = (Claim("The car is red.", True), Claim("Paris is on the sign.", False))
TREE = (Claim("There are two trees.", True),)


def test_the_claims_of_the_only_image_stay_as_they_are():
    assert join_claims([CAR]) == CAR
    assert join_claims([CAR], single_image_only=True) == CAR


def test_claims_of_several_images_say_which_one_and_keep_their_labels():
    assert join_claims([CAR, TREE]) == (
        Claim("In image 1, the car is red.", True),
        Claim("In image 1, Paris is on the sign.", False),
        Claim("In image 2, there are two trees.", True),
    )


@pytest.mark.parametrize("images", [[], [None], [()], [CAR, None], [None, TREE], [CAR, (), TREE]])
def test_a_row_with_an_uncovered_image_or_none_has_no_claims(images):
    assert join_claims(images) == ()


def test_single_image_only_leaves_out_rows_of_several():
    assert join_claims([CAR, TREE], single_image_only=True) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The car is red.", "In image 3, the car is red."),
        ("USA is written there.", "In image 3, USA is written there."),
        ("Angle ABC is acute.", "In image 3, Angle ABC is acute."),
        ("Thecla is a name.", "In image 3, Thecla is a name."),
        ("A", "In image 3, a"),
    ],
)
def test_first_words_that_may_be_names_keep_their_capital(text, expected):
    assert about_image(3, text) == expected
