import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vapo_verl.analysis.statistics import (
    arm_score,
    benjamini_hochberg,
    clustered_interval,
    compare_arms,
    compare_paired,
    majority_score,
    mcnemar,
    pass_at_k,
)

FLAGS = st.lists(st.booleans(), min_size=1, max_size=8)


def test_pass_at_k_by_hand():
    # 2 of 4 correct, 2 drawn: of C(4, 2) = 6 pairs, C(2, 2) = 1 holds no correct one
    assert pass_at_k(2, 4, 2) == pytest.approx(5 / 6)
    assert pass_at_k(0, 8, 8) == 0
    assert pass_at_k(1, 8, 8) == 1
    assert pass_at_k(3, 8, 1) == pytest.approx(3 / 8)


@given(FLAGS, st.data())
def test_pass_at_k_is_the_mean_over_all_ways_to_draw_k(flags, data):
    k = data.draw(st.integers(1, len(flags)))
    drawn = list(itertools.combinations(flags, k))
    assert pass_at_k(sum(flags), len(flags), k) == pytest.approx(sum(map(any, drawn)) / len(drawn))


@pytest.mark.parametrize(("correct", "samples", "k"), [(1, 4, 5), (1, 4, 0), (5, 4, 1), (-1, 4, 1)])
def test_pass_at_k_refuses_impossible_counts(correct, samples, k):
    with pytest.raises(ValueError, match=f"pass@{k} of {correct} correct in {samples} samples"):
        pass_at_k(correct, samples, k)


def test_majority_by_hand():
    assert majority_score(["A", "A", "B"], [True, True, False]) == 1
    assert majority_score(["A", "B", "B"], [True, False, False]) == 0
    assert majority_score(["A", "B"], [True, False]) == 0.5
    # None is no vote: one readable answer decides against seven unreadable ones
    assert majority_score([None] * 7 + ["A"], [False] * 7 + [True]) == 1
    assert majority_score([None, None], [False, False]) == 0


@given(st.lists(st.sampled_from("ABC"), min_size=1, max_size=8), st.randoms())
def test_majority_does_not_depend_on_the_order_of_samples(answers, random):
    mixed = answers[:]
    random.shuffle(mixed)
    scores = [majority_score(each, [a == "A" for a in each]) for each in (answers, mixed)]
    assert scores[0] == scores[1]
    assert 0 <= scores[0] <= 1


def test_interval_of_single_rows_is_about_the_binomial_one():
    values = [1.0] * 60 + [0.0] * 40
    found = clustered_interval(values, range(100))
    # 0.6 ± 1.96 sqrt(0.24 / 100) = 0.6 ± 0.096
    assert found.mean == pytest.approx(0.6)
    assert (found.low, found.high) == pytest.approx((0.504, 0.696), abs=0.015)


def test_rows_of_one_image_count_as_one():
    # 25 images with 4 questions each, all solved or none: the interval is that of 25 rows,
    # 0.6 ± 1.96 sqrt(0.24 / 25) = 0.6 ± 0.192
    values = [1.0] * 60 + [0.0] * 40
    found = clustered_interval(values, [row // 4 for row in range(100)])
    assert (found.low, found.high) == pytest.approx((0.408, 0.792), abs=0.03)


def test_one_cluster_tells_no_spread():
    found = clustered_interval([1.0, 0.0], ["figure", "figure"])
    assert found.mean == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert math.isnan(clustered_interval([], []).mean)


@settings(max_examples=30)
@given(FLAGS, st.integers(0, 3))
def test_interval_holds_the_mean_and_mirrors(flags, seed):
    values = [float(flag) for flag in flags]
    clusters = list(range(len(values)))
    found = clustered_interval(values, clusters, seed=seed)
    again = clustered_interval(values, clusters, seed=seed)
    if len(set(values)) > 1:
        assert found == again
        assert 0 <= found.low <= found.mean + 1e-12
        assert found.mean - 1e-12 <= found.high <= 1
        mirrored = clustered_interval([1 - value for value in values], clusters, seed=seed)
        assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low))


def test_mcnemar_by_hand():
    # 5 gained, 1 lost: 2 (C(6, 0) + C(6, 1)) / 2^6 = 14 / 64
    assert mcnemar(5, 1) == pytest.approx(14 / 64)
    assert mcnemar(0, 0) == 1


def test_single_greedy_rows_are_compared_by_mcnemar():
    a = [1.0, 0, 0, 0, 0, 0, 1]
    b = [0.0, 1, 1, 1, 1, 1, 1]
    found = compare_paired(a, b, range(7))
    assert (found.test, found.p) == ("mcnemar", pytest.approx(14 / 64))
    assert found.difference.mean == pytest.approx(4 / 7)


def test_clusters_and_fractions_are_compared_by_sign_flips():
    a, b = [0.0] * 40, [1.0] * 20 + [0.0] * 20
    alone = compare_paired(a, b, range(40))
    clustered = compare_paired(a, b, [row // 20 for row in range(40)])
    assert alone.test == "mcnemar"
    assert alone.p < 1e-5
    # two images, one of them solved by B: each of the four flips is as far from 0
    assert (clustered.test, clustered.p) == ("sign_flips", 1)
    assert compare_paired([0.5, 0.25], [0.5, 0.25], "ab").test == "sign_flips"
    assert compare_paired([0.5, 0.25], [0.5, 0.25], "ab").p == 1


def test_few_clusters_give_no_small_p():
    three = compare_paired([0.0] * 3, [0.125] * 3, "abc")
    assert three.p == 2 / 2**3
    assert math.isnan(three.difference.low)  # equal clusters do not show how they vary
    two = compare_paired([0.0, 0, 0, 1, 1, 0], [1.0, 0, 0, 1, 1, 1], list("iiijjj"))
    assert two.p == 2 / 2**2
    assert math.isnan(compare_paired([0.0, 0.0], [0.5, 1.0], "aa").p)


def test_sign_flips_agree_with_a_t_test_of_many_clusters():
    differences = np.random.default_rng(1).normal(0.2, 1, 200)
    p = compare_paired([0.0] * 200, differences.tolist(), range(200)).p
    assert p == pytest.approx(float(stats.ttest_1samp(differences, 0).pvalue), abs=0.005)


@pytest.mark.parametrize("num_clusters", [3, 5, 8])
def test_chance_is_significant_in_at_most_its_share(num_clusters):
    rng = np.random.default_rng(num_clusters)
    p_values = [
        compare_paired(*rng.binomial(8, 0.5, (2, num_clusters)) / 8, range(num_clusters)).p
        for _ in range(200)
    ]
    assert np.mean(np.array(p_values) < 0.05) <= 0.08  # 0.05 and two standard errors


def test_few_clusters_widen_the_interval():
    values = [0.2, 0.4, 0.5, 0.6, 0.8]
    found = clustered_interval(values, range(5))
    half = float(stats.t.ppf(0.975, 4)) * float(np.std(values, ddof=1)) / math.sqrt(5)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.05)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12))
def test_exchanging_the_models_turns_the_sign(pairs):
    a, b = ([float(f"{value:.3f}") for value in column] for column in zip(*pairs, strict=True))
    clusters = [row // 2 for row in range(len(pairs))]
    there, back = compare_paired(a, b, clusters), compare_paired(b, a, clusters)
    assert there.difference.mean == pytest.approx(-back.difference.mean)
    assert there.p == pytest.approx(back.p, nan_ok=True)
    assert there.difference.low == pytest.approx(-back.difference.high, nan_ok=True)


def test_arms_are_compared_by_seed():
    a, b = [0.50, 0.52, 0.54], [0.56, 0.58, 0.60]
    difference, p = compare_arms(a, b)
    expected = stats.ttest_ind(b, a, equal_var=False)
    assert difference.mean == pytest.approx(0.06)
    assert p == pytest.approx(float(expected.pvalue))
    interval = expected.confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
    assert arm_score(a).lowest == 0.50
    assert arm_score(a).highest == 0.54


@pytest.mark.parametrize(("a", "b"), [([0.5], [0.6, 0.7]), ([0.5], [0.9]), ([0.5] * 2, [0.6] * 2)])
def test_too_few_seeds_give_no_p(a, b):
    difference, p = compare_arms(a, b)
    assert math.isnan(p)
    assert math.isnan(difference.low)
    assert difference.mean == pytest.approx(np.mean(b) - np.mean(a))


def test_benjamini_hochberg_by_hand():
    # sorted: 0.01 * 4 / 1, 0.02 * 4 / 2, 0.03 * 4 / 3, 0.5 * 4 / 4, then the minimum from above
    adjusted = benjamini_hochberg([0.5, 0.03, 0.01, 0.02])
    assert adjusted == pytest.approx([0.5, 0.04, 0.04, 0.04])


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=12))
def test_adjusted_p_values_keep_their_order_and_never_fall(values):
    adjusted = benjamini_hochberg([*values, math.nan])
    assert math.isnan(adjusted.pop())
    assert all(new >= old - 1e-12 for old, new in zip(values, adjusted, strict=True))
    assert max(adjusted) <= 1
    for i, j in itertools.combinations(range(len(values)), 2):
        if values[i] < values[j]:
            assert adjusted[i] <= adjusted[j] + 1e-12
    assert benjamini_hochberg([math.nan]) == pytest.approx([math.nan], nan_ok=True)
