import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vapo_verl.digits.claims import judge, sample_claims
from vapo_verl.digits.scene import COLORS, Cell, Scene, sample_scene, scan_pool

SIDES = st.sampled_from([2, 3])


@st.composite
def scenes(draw):
    rows, cols = draw(SIDES), draw(SIDES)
    cell = st.builds(Cell, digit=st.integers(0, 9), color=st.sampled_from(COLORS), scan=st.just(0))
    cells = draw(st.lists(cell, min_size=rows * cols, max_size=rows * cols))
    return Scene(rows=rows, cols=cols, cells=tuple(cells))


@given(scenes(), st.integers(0, 2**32))
def test_twenty_distinct_claims_half_true_judged_alike_by_the_oracle(scene, seed):
    claims = sample_claims(random.Random(seed), scene)
    assert len({item.claim.text for item in claims}) == 20
    assert sum(item.label for item in claims) == 10
    for item in claims:
        assert item.claim.holds(scene) == judge(item.claim.text, scene) == item.label


@pytest.mark.parametrize("cols", [2, 3])
def test_uniform_scene_still_has_twenty_claims(cols):
    cells = tuple(Cell(digit=4, color="blue", scan=0) for _ in range(2 * cols))
    claims = sample_claims(random.Random(0), Scene(rows=2, cols=cols, cells=cells))
    assert len({item.claim.text for item in claims}) == 20
    assert not any("larger" in item.claim.text for item in claims)


def test_claims_spread_over_kinds_and_topics():
    rng = random.Random(0)
    scene = sample_scene(rng, scan_pool("train"), 3, 3)
    claims = [item.claim for item in sample_claims(rng, scene)]
    kinds = [claim.kind for claim in claims]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "identity": 5,
        "color": 5,
        "relation": 5,
        "position": 5,
    }
    assert len({claim.topic for claim in claims}) == 20


def test_label_cannot_be_told_from_the_kind_or_the_order():
    rng = random.Random(0)
    true_by_kind, first_true = {}, 0
    for _ in range(400):
        claims = sample_claims(rng, sample_scene(rng, scan_pool("train"), 2, 3))
        first_true += claims[0].label
        for item in claims:
            true_by_kind.setdefault(item.claim.kind, []).append(item.label)
    assert first_true == pytest.approx(200, abs=40)
    for labels in true_by_kind.values():
        assert sum(labels) / len(labels) == pytest.approx(0.5, abs=0.1)


def test_oracle_by_hand():
    cells = tuple(
        Cell(digit=digit, color=color, scan=0)
        for digit, color in ((3, "red"), (7, "blue"), (3, "green"), (0, "red"))
    )
    scene = Scene(rows=2, cols=2, cells=cells)
    truths = {
        "The top right digit is 7.": True,
        "The top right digit is 3.": False,
        "The bottom left digit is green.": True,
        "The bottom left digit is red.": False,
        "The top right digit is larger than the bottom right digit.": True,
        "The top left digit is larger than the bottom left digit.": False,
        "There is a blue 7 in the right column.": True,
        "There is a blue 7 in the bottom row.": False,
        "There is a red 7 in the top row.": False,
    }
    assert {text: judge(text, scene) for text in truths} == truths


@pytest.mark.parametrize("text", ["The sky is blue.", "The middle left digit is 3.", ""])
def test_oracle_refuses_what_it_cannot_judge(text):
    scene = sample_scene(random.Random(0), scan_pool("train"), 2, 2)
    with pytest.raises(ValueError):
        judge(text, scene)


@pytest.mark.parametrize("grid", [(2, 2), (2, 3), (3, 3)])
def test_kinds_can_be_chosen(grid):
    rng = random.Random(0)
    scene = sample_scene(rng, scan_pool("train"), *grid)
    chosen = sample_claims(rng, scene, 8, kinds=("identity", "color"))
    assert {item.claim.kind for item in chosen} == {"identity", "color"}
    assert sum(item.label for item in chosen) == 4
    assert all(item.claim.holds(scene) == item.label for item in chosen)
