"""Rules on single claims, on pairs, and the choice among candidates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vapo_verl.claims.making.rules import (
    ClaimRules,
    add_candidates,
    are_opposite,
    are_same,
    balanced,
    is_low_level,
    similarity,
    text_problem,
)
from vapo_verl.data.claims_column import Claim, is_balanced


@pytest.mark.parametrize(
    "text",
    [
        "The cat and the dog sit on the sofa.",
        'The sign above the door reads "MAYBE TOMORROW; and more".',
        "The calendar on the wall shows May.",
        "Angle ABC lies inside the triangle.",
        "The café stands behind the church.",
        "The man's hat hangs on the chair.",
        "The ceiling and the building behind it are white.",
        "Angle A and angle B are equal.",
        "The chair stands between the window and the painting.",
        "The unknown side of the triangle is labelled x.",
        "A man in a dark suit is walking past the shop.",
    ],
)
def test_good_claims(text):
    assert text_problem(text) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("A cat.", "length"),
        ("The cat " + "very " * 18 + "sleeps.", "length"),
        ("The cat seems to sleep.", "hedge"),
        ("The man may be a waiter.", "hedge"),
        ("The man is probably a waiter.", "hedge"),
        ("The cat is black and the dog is white.", "several_facts"),
        ("The man is wearing a hat and holding a cup.", "several_facts"),
        ("The cat sleeps; a dog barks.", "several_facts"),
        ("The cat sleeps. A dog barks.", "several_facts"),
        ("Is the cat asleep?", "about_the_task"),
        ("The answer of the riddle is four.", "about_the_task"),
        ("Кошка спит на диване.", "language"),
    ],
)
def test_turned_down(text, reason):
    assert text_problem(text) == reason


def test_twenty_words_are_allowed_and_twenty_one_are_not():
    assert text_problem("word " * 20) is None
    assert text_problem("word " * 21) == "length"


@pytest.mark.parametrize("text", ["The hat is red.", "There are three cats.", "The 4 dogs run."])
def test_low_level(text):
    assert is_low_level(text)


@pytest.mark.parametrize(
    "text", ['The sign reads "RED".', "The digit 7 stands on top.", "Angle B measures 30 degrees."]
)
def test_not_low_level(text):
    assert not is_low_level(text)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("The cat is left of the dog.", "The cat is right of the dog."),
        ("The door is open.", "The door is not open."),
        ("The door is open.", "The door isn't open."),
        ("There is a cat on the sofa.", "There is no cat on the sofa."),
    ],
)
def test_opposites(first, second):
    assert are_opposite(first, second) and are_opposite(second, first)


def test_not_opposites():
    assert not are_opposite("The cat is left of the dog.", "The cat is left of the cow.")
    assert not are_opposite("The cat is left of the dog.", "The cow is right of the dog.")


def test_similarity_by_hand():
    # "  ab " has the trigrams "  a", " ab", "ab "; "  ac " shares only the first: 1 / 3
    assert similarity("ab", "ac") == pytest.approx(1 / 3)
    assert similarity("The cat sleeps.", "the  CAT sleeps") == pytest.approx(1)
    assert similarity("", "cat") == 0
    assert are_same("The cat sleeps.", "The cat sleeps!")


def test_colour_claims_come_last_and_are_capped():
    rules = ClaimRules(num_claims=4, max_low_level_fraction=0.25)  # 1 of 4
    red = [Claim("The hat is red.", True), Claim("The coat is green.", False)]
    rest = [Claim("The cat sleeps nearby.", True), Claim("A tower leans over.", True)]
    kept, rejected = add_candidates((), red + rest, rules)
    assert kept == (*rest, red[1])  # no room is left for a third true one
    assert rejected == {"surplus": 1}
    kept, rejected = add_candidates((), [*red, rest[0]], rules)
    assert kept == (rest[0], red[0])
    assert rejected == {"low_level": 1}


def test_an_opposite_of_a_kept_claim_is_told_from_a_duplicate():
    kept = (Claim("The cat is left of the dog.", True),)
    again = [
        Claim("The cat is right of the dog.", False),
        Claim("the cat is left of the dog", True),
    ]
    assert add_candidates(kept, again, ClaimRules())[1] == {"opposite": 1, "duplicate": 1}


@given(st.lists(st.booleans(), max_size=40))
def test_the_balanced_choice_is_balanced_and_the_largest(labels):
    claims = [Claim(f"claim {number}", label) for number, label in enumerate(labels)]
    kept = balanced(claims)
    assert is_balanced(kept)
    if is_balanced(claims) and len(set(labels)) == 2:
        assert kept == tuple(claims)
    for dropped in set(claims) - set(kept):
        assert not is_balanced([*kept, dropped])


@pytest.mark.parametrize("wrong", [{"num_claims": 1}, {"max_low_level_fraction": 1.5}])
def test_rules_that_cannot_be(wrong):
    with pytest.raises(ValueError, match="give"):
        ClaimRules(**wrong)
