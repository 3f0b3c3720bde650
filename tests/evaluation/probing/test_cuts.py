"""Where a response is cut."""

import pytest

from vapo_verl.evaluation.probing.respond import cut_positions, even_targets, find_reasoning

PIECES = ["<", "think", ">", "a", ".", " b", ",", " c", ".", "</", "think", ">", "\\boxed", "{1}"]


def test_reasoning_lies_between_the_tags():
    reasoning = find_reasoning(PIECES)
    assert (reasoning.start, reasoning.end) == (3, 9)
    assert reasoning.boundaries == (3, 5, 7, 9)


@pytest.mark.parametrize(
    "pieces, span",
    [
        (["\n", "<think>", "a"], (2, 3)),  # white space before the tag; cut off by the length
        (["a", ".", "\\boxed", "{1}"], (0, 2)),  # no tags
        (["<", "b", ">"], (0, 3)),  # another tag
        (["<think>", "</think>"], (1, 1)),  # nothing inside
        ([], (0, 0)),
    ],
)
def test_spans_of_unusual_responses(pieces, span):
    reasoning = find_reasoning(pieces)
    assert (reasoning.start, reasoning.end) == span
    assert set(reasoning.boundaries) >= set(span)


def test_cuts_are_the_nearest_boundaries():
    # targets at 3, 4.5, 6, 7.5 and 9 tokens; 6 is as near to 5 as to 7 and takes the earlier
    cuts = cut_positions(find_reasoning(PIECES), even_targets(5))
    assert cuts == [3, 5, 5, 7, 9]


def test_targets():
    targets = even_targets(21)
    assert len(targets) == 21
    assert targets[:3] == (0.0, 0.05, 0.1)
    assert targets[-1] == 1.0
