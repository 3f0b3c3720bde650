"""The lower bound of a KL divergence from truncated lists."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vapo_verl.evaluation.image_swap.swap_probe import divergence


def logs(*shares):
    return {token: math.log(share) for token, share in enumerate(shares)}


def full(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_whole_distributions_give_the_divergence_itself():
    found = divergence(logs(0.5, 0.5), logs(0.75, 0.25))
    assert found == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))


def test_others_count_as_one_outcome():
    p, q = logs(0.6, 0.3), logs(0.2, 0.3)  # 0.1 and 0.5 are left
    assert divergence(p, q) == pytest.approx(0.6 * math.log(3) + 0.1 * math.log(0.2))


def test_tokens_of_one_list_only_are_among_the_others():
    p, q = {0: math.log(0.6), 1: math.log(0.3)}, {0: math.log(0.6), 2: math.log(0.3)}
    assert divergence(p, q) == pytest.approx(0, abs=1e-9)


@given(
    st.lists(
        st.tuples(st.floats(0.01, 1), st.floats(0.01, 1), st.booleans(), st.booleans()),
        min_size=2,
        max_size=8,
    )
)
def test_truncated_lists_never_exceed_the_divergence(weights):
    first, second, in_p, in_q = zip(*weights, strict=True)
    p, q = [w / sum(first) for w in first], [w / sum(second) for w in second]
    cut_p = {i: math.log(p[i]) for i in range(len(p)) if in_p[i]}
    cut_q = {i: math.log(q[i]) for i in range(len(q)) if in_q[i]}
    assert -1e-12 <= divergence(cut_p, cut_q) <= full(p, q) + 1e-6
