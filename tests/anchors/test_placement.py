"""Cuts lie at logical boundaries of the reasoning, far enough apart, between tokens."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vapo_verl.anchors.placement import logical_boundaries, place, reasoning_length
from vapo_verl.config import PLACEMENTS


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_reasoning_ends_before_the_closing_tag():
    #         0          1      2     3           4         5
    pieces = ["<think>", " a", ".", "</think>", "\\boxed", "{1}"]
    assert reasoning_length(pieces) == 3


def test_a_tag_split_over_tokens_ends_the_reasoning_at_its_first_token():
    assert reasoning_length(["x", ".", "</", "think", ">", "y"]) == 2


def test_without_a_tag_the_answer_ends_the_reasoning_and_without_both_all_counts():
    assert reasoning_length(["so", ",", " \\boxed", "{3}", "."]) == 2
    assert reasoning_length(["no", " answer", "."]) == 3


def test_boundaries_follow_punctuation_and_newlines_inside_the_reasoning():
    pieces = ["<think>", "left", " is", " 3", ".", " so", ",", "\n", "</think>", "x", "."]
    #                                          ^5           ^7   ^8 positions after these tokens
    assert logical_boundaries(pieces) == [5, 7, 8]


def test_a_mark_between_digits_is_no_boundary():
    assert logical_boundaries(["3", ".", "1", "4", ".", " Yes"]) == [5]
    assert logical_boundaries(["1", ",", "0", "0", "0", ","]) == [6]
    assert logical_boundaries(["at", " 3", ".", "\n"]) == [3, 4]


def test_full_width_punctuation_and_broken_characters():
    # a multi-byte character split over two tokens decodes to replacement characters
    assert logical_boundaries(["看", "。", "�", "�", "！"]) == [2, 5]


def test_front_and_back_take_the_first_and_the_last_k():
    boundaries = [5, 10, 15, 20, 25]
    front = place(boundaries, 2, end=30, placement="front", min_gap=1, rng=rng())
    back = place(boundaries, 2, end=30, placement="back", min_gap=1, rng=rng())
    assert front == [(5, True), (10, True)]
    assert back == [(20, True), (25, True)]


def test_uniform_spreads_over_the_reasoning():
    boundaries = list(range(1, 101))
    cuts = place(boundaries, 5, end=100, placement="uniform", min_gap=1, rng=rng())
    # targets are linspace(1, 100, 5) = 1, 25.75, 50.5, 75.25, 100
    assert [position for position, _ in cuts] == [1, 26, 50, 75, 100]


def test_one_uniform_cut_is_in_the_middle():
    cuts = place(range(1, 102), 1, end=101, placement="uniform", min_gap=1, rng=rng())
    assert cuts == [(51, True)]


@pytest.mark.parametrize("num_anchors", [0, 2])
@pytest.mark.parametrize("placement", ["middle", "", "Uniform", "uniform "])
def test_an_unknown_placement_is_refused(placement: str, num_anchors: int):
    with pytest.raises(ValueError, match="random, relative, uniform, front, back") as refused:
        place([5, 10], num_anchors, end=12, placement=placement, min_gap=1, rng=rng())
    assert repr(placement) in str(refused.value)


@pytest.mark.parametrize("placement", [name for name in PLACEMENTS if name != "relative"])
def test_too_few_boundaries_repeat_the_last_cut(placement: str):
    cuts = place([4, 9], 4, end=12, placement=placement, min_gap=1, rng=rng())
    assert cuts == [(4, True), (9, True), (9, False), (9, False)]


def test_siblings_have_the_same_relative_places_with_enough_boundaries_and_with_too_few():
    places = [
        np.array([position for position, _ in cuts]) / 400
        for num_boundaries in (80, 10)
        for step in [400 // num_boundaries]
        for cuts in [
            place(range(step, 401, step), 20, end=400, placement="relative", min_gap=1, rng=rng())
        ]
    ]
    assert abs(places[0] - places[1]).max() <= 0.1  # the distance of two of ten boundaries


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_no_boundary_puts_every_cut_at_the_end(placement: str):
    assert place([], 2, end=12, placement=placement, min_gap=1, rng=rng()) == [(12, False)] * 2


@given(
    st.sets(st.integers(1, 300), max_size=60).map(sorted),
    st.integers(0, 25),
    st.sampled_from(PLACEMENTS),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
)
def test_cuts_are_sorted_boundaries_at_least_min_gap_apart(boundaries, k, placement, gap, seed):
    cuts = place(
        boundaries, k, end=300, placement=placement, min_gap=gap, rng=np.random.default_rng(seed)
    )
    own = [position for position, has_boundary in cuts if has_boundary]
    assert len(cuts) == k
    assert set(own) <= set(boundaries)
    assert all(b - a >= gap for a, b in pairwise(own))
    assert [position for position, _ in cuts] == sorted(position for position, _ in cuts)


def test_random_placement_reaches_every_boundary_about_equally():
    boundaries = [10, 20, 30, 40]
    draws = np.random.default_rng(0)
    counts = dict.fromkeys(boundaries, 0)
    for _ in range(2000):
        [(position, _)] = place(boundaries, 1, end=50, placement="random", min_gap=1, rng=draws)
        counts[position] += 1
    # 2000 draws over 4: 500 each, standard deviation sqrt(2000 * 0.25 * 0.75) = 19.4
    assert all(abs(count - 500) < 5 * 19.4 for count in counts.values())
