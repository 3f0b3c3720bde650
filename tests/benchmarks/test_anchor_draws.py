"""The spread of R_perc between siblings, split exactly where the truth is planted."""

import numpy as np
import pytest

from benchmarks.anchor_draws import Sibling, over_seeds, parts
from vapo_verl.data.claims_column import Claim
from vapo_verl.digits.model.samples import Sample

ROWS, SIBLINGS, DRAWS, NUM_CLAIMS = 16, 4, 24, 20
PIECES = tuple(["a ", "b", ". "] * 24)
CLAIMS = tuple(Claim(text=f"claim {n}", label=True) for n in range(NUM_CLAIMS))


def siblings():
    sample = Sample(
        pixels=np.zeros((1, 1, 3), np.uint8),
        rows=1,
        cols=1,
        prompt_ids=(),
        response_ids=tuple(range(len(PIECES))),
        probes=(),
    )
    return [
        Sibling(row=row, number=number, sample=sample, pieces=PIECES, claims=CLAIMS)
        for row in range(ROWS)
        for number in range(SIBLINGS)
    ]


def measured(way, num_anchors, is_right):
    """`is_right(row, number, position, claim)` -> whether the answer is correct."""
    group = siblings()
    plans = [sibling.plans(way, num_anchors, seed=0, draws=DRAWS) for sibling in group]
    said = [
        {
            (a.position, a.claim): is_right(s.row, s.number, a.position, int(a.claim.split()[1]))
            for plan in of_sibling
            for a in plan
        }
        for s, of_sibling in zip(group, plans, strict=True)
    ]
    return parts(group, plans, said, 0.0, is_shared=way == "group")


def test_answers_that_depend_on_the_claim_alone_differ_by_the_draw():
    def easy(row, number, position, claim):
        return claim < NUM_CLAIMS // 2

    drawn = measured("independent", 5, easy)
    assert drawn.total == pytest.approx((0.25 / 5 * 15 / 19) ** 0.5, rel=0.05)  # hypergeometric
    assert drawn.by_response == pytest.approx(0, abs=0.05)
    assert drawn.estimate == pytest.approx(0, abs=0.1)
    for way, num_anchors in (("group", 5), ("independent", 20)):  # the same claims
        assert measured(way, num_anchors, easy).total == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("way", ["independent", "independent, relative", "group"])
def test_answers_that_depend_on_the_response_alone_differ_by_the_response(way):
    found = measured(way, 5, lambda row, number, position, claim: number % 2 == 0)
    assert found.total == pytest.approx((SIBLINGS / (SIBLINGS - 1) / 4) ** 0.5)
    assert found.by_response == pytest.approx(1)
    assert found.estimate > 0.95


def test_a_mixture_is_split_at_its_variances():
    """Sibling n knows a fraction of all claims, drawn for each row, and guesses nothing."""
    known = np.random.default_rng(0).random((ROWS, SIBLINGS, NUM_CLAIMS)) < np.array(
        [0.3, 0.5, 0.7, 0.9]
    ).reshape(1, SIBLINGS, 1)

    def knows(row, number, position, claim):
        return bool(known[row, number, claim])

    of_responses = known.mean(axis=2).var(axis=1, ddof=1).mean()
    found = measured("independent", 5, knows)
    assert found.by_response * found.total**2 == pytest.approx(of_responses, rel=0.1)
    shared = measured("group", 5, knows)
    assert shared.by_response * shared.total**2 == pytest.approx(of_responses, rel=0.1)
    assert measured("independent", 20, knows).by_response == pytest.approx(1)


def test_means_and_deviations_are_over_seeds():
    found = measured("group", 5, lambda row, number, position, claim: number == 0)
    assert over_seeds([found, found])["by_response"] == [pytest.approx(found.by_response), 0]
