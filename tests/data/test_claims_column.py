import numpy as np
import pyarrow as pa
import pytest

from vapo_verl.data.claims_column import (
    Claim,
    has_contradiction,
    has_duplicates,
    is_balanced,
    read_claims,
    share_true,
)
from vapo_verl.data.errors import BadCell

PLAIN = [{"text": "a", "label": True}, {"text": "b", "label": False}]


@pytest.mark.parametrize(
    "cell",
    [
        PLAIN,
        tuple(PLAIN),
        np.array(PLAIN, dtype=object),
        [{"text": np.str_("a"), "label": np.bool_(True)}, PLAIN[1]],
        pa.scalar(PLAIN),
        list(pa.array([PLAIN])[0]),
    ],
    ids=["list", "tuple", "numpy", "numpy scalars", "arrow list", "arrow structs"],
)
def test_claims_come_out_the_same_from_every_carrier(cell):
    claims = read_claims(cell)
    assert claims == (Claim("a", True), Claim("b", False))
    assert all(type(claim.text) is str and type(claim.label) is bool for claim in claims)


@pytest.mark.parametrize("cell", [None, [], np.array([]), pa.scalar(None, pa.list_(pa.string()))])
def test_null_and_empty_are_no_claims(cell):
    assert read_claims(cell) == ()


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("CORRECT", "'CORRECT' (str)"),
        ([["a", True]], "['a', True] (list)"),
        ([{"text": "a"}], "{'text': 'a'} (dict)"),
        ([{"text": 3, "label": True}], "text is 3 (int)"),
        ([{"text": None, "label": True}], "text is null"),
        ([{"text": " ", "label": True}], "text is blank"),
        ([{"text": "a", "label": 1}], "label is 1 (int), want true/false"),
        ([{"text": "a", "label": None}], "label is null, want true/false"),
    ],
)
def test_other_shapes_are_named(cell, found):
    with pytest.raises(BadCell) as error:
        read_claims(cell)
    assert error.value.column == "claims"
    assert found in error.value.found


def test_label_as_text_points_to_the_importer():
    with pytest.raises(BadCell, match="import-vapo-thinker"):
        read_claims([{"text": "a", "label": "WRONG"}])


def test_balance_is_judged_at_three_and_seven_of_ten():
    def of_ten(num_true):
        return [Claim(str(i), i < num_true) for i in range(10)]

    assert share_true(of_ten(3)) == 0.3
    assert [is_balanced(of_ten(n)) for n in (2, 3, 7, 8)] == [False, True, True, False]
    assert is_balanced([])


def test_duplicates_ignore_case_and_spaces_and_contradictions_are_duplicates_with_two_labels():
    same = [Claim("A  red cup", True), Claim(" a red CUP ", True)]
    opposite = [Claim("A red cup", True), Claim("a red cup", False)]
    different = [Claim("A red cup", True), Claim("A red cap", False)]
    assert [has_duplicates(c) for c in (same, opposite, different)] == [True, True, False]
    assert [has_contradiction(c) for c in (same, opposite, different)] == [False, True, False]
