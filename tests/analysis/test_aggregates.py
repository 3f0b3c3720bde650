"""Hand-computed numbers of the aggregates."""

import math

import numpy as np
import pytest

from vapo_verl.analysis.position_curves import (
    NUM_TOKEN_BINS,
    AnchorAccuracy,
    AttentionCurves,
    RatioHistograms,
    half_life,
    progress_bins,
    response_attention,
    wilson,
)
from vapo_verl.analysis.statistics import paired_difference
from vapo_verl.report.run_summary import BoundedSample
from vapo_verl.run_folder.metrics import read_metrics
from vapo_verl.run_folder.rollouts import RolloutAnchor

nan = math.nan


def test_quantiles_of_a_stream_to_half_a_cell():
    histograms = RatioHistograms(2)
    values = np.array([0.1, 0.2, 0.3, 0.4, 0.5, nan])
    histograms.add(np.zeros(6, dtype=int), values)
    assert histograms.sizes().tolist() == [5, 0]
    assert histograms.quantile(0.5) == pytest.approx([0.3, nan], abs=0.0006, nan_ok=True)
    assert histograms.quantile(0.25)[0] == pytest.approx(0.2, abs=0.0006)  # ceil(1.25) = 2nd
    histograms.add(np.ones(2, dtype=int), np.array([1.0, 7.0]))  # clipped into the last cell
    histograms.merge_pairs()
    assert histograms.sizes().tolist() == [7, 0]


def test_progress_bins_are_closed_on_the_right():
    # 4 tokens: progress 1/4, 2/4, 3/4, 1; in halves (0, 1/2] and (1/2, 1]
    assert progress_bins(4, 2).tolist() == [0, 0, 1, 1]
    assert progress_bins(3, 2).tolist() == [0, 1, 1]
    assert progress_bins(1, 20).tolist() == [19]
    assert progress_bins(0, 20).tolist() == []


def test_a_long_response_weighs_no_more_than_a_short_one_by_progress():
    curves = AttentionCurves()
    curves.add(np.full(400, 0.1))
    curves.add(np.full(20, 0.3))
    curves.add(np.full(40, 0.9))
    curves.add(np.full(20, nan))  # no value: not counted
    assert curves.num_responses == 3
    assert curves.by_progress.sizes().tolist() == [3] * 20
    assert curves.by_progress.quantile(0.5) == pytest.approx([0.3] * 20, abs=0.001)
    # 400 tokens in 128 bins: 4 tokens each, 400 + 20 + 40 of them
    assert curves.token_width == 4
    assert curves.by_token.sizes()[[0, 4, 5, 9, 10, 99, 100]].tolist() == [12, 12, 8, 8, 4, 4, 0]
    assert len(curves.by_token.sizes()) == NUM_TOKEN_BINS


def test_layer_means_leave_nan_out_and_other_layers_are_counted():
    curves = AttentionCurves()
    curves.add(np.full(20, 0.1), np.stack([np.full(20, 0.1), np.full(20, 0.4)], axis=1))
    curves.add(np.full(20, 0.1), np.stack([np.full(20, 0.3), np.full(20, nan)], axis=1))
    curves.add(np.full(20, 0.1), np.full((20, 3), 0.1))
    means = curves.layer_means()
    assert means is not None
    assert means.shape == (20, 2)
    assert means[7] == pytest.approx([0.2, 0.4])
    assert curves.num_other_layers == 1
    assert AttentionCurves().layer_means() is None


def test_slope_and_late_over_early_of_a_line():
    # ratio 0.7 - 0.6 t / T with T = 6: 0.6 0.5 0.4 0.3 0.2 0.1
    # early t/T <= 1/3: (0.6 + 0.5) / 2; late t/T >= 2/3: (0.3 + 0.2 + 0.1) / 3
    found = response_attention(np.array([0.6, 0.5, 0.4, 0.3, 0.2, 0.1]))
    assert found.slope == pytest.approx(-0.6)
    assert found.late_over_early == pytest.approx(0.2 / 0.55)
    assert found.mean == pytest.approx(0.35)
    assert math.isnan(response_attention(np.array([0.5])).slope)
    assert math.isnan(response_attention(np.array([])).mean)
    assert math.isnan(response_attention(np.array([0.0, 0.1, 0.2])).late_over_early)


def test_half_life_is_linear_between_points_and_counts_from_the_first():
    where = np.array([10.0, 20.0, 30.0])
    # 0.8 -> 0.4 lies between 0.6 at 20 and 0.2 at 30: half way, 25 - 10
    assert half_life(where, np.array([0.8, 0.6, 0.2])) == pytest.approx(15)
    assert half_life(where, np.array([nan, 0.8, 0.4])) == pytest.approx(10)
    assert math.isnan(half_life(where, np.array([0.8, 0.7, 0.6])))
    assert math.isnan(half_life(where, np.array([nan, nan, nan])))
    assert math.isnan(half_life(where, np.array([0.0, 0.0, 0.0])))


def test_anchors_by_position_and_their_calibration():
    anchors = AnchorAccuracy()
    rows = [
        {"position": 1, "label": True, "answer": True, "correct": True, "p_yes": 0.9},
        {"position": 1, "label": False, "answer": True, "correct": False, "p_yes": 0.95},
        {"position": 10, "label": False, "answer": False, "correct": True, "p_yes": 0.2},
        {"position": 5, "label": True, "answer": False, "correct": False, "p_yes": None},
        {"position": None, "label": True, "answer": None, "correct": None, "p_yes": nan},
    ]
    anchors.add([RolloutAnchor(**row) for row in rows], num_tokens=10)
    assert anchors.num_probed.tolist() == [
        0,
        2,
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        1,
    ]  # a / T = 1 in the last bin
    assert anchors.num_correct.tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert (anchors.num_anchors, anchors.accuracy()) == (4, 0.5)
    assert (anchors.num_yes, anchors.num_labels_true) == (2, 2)
    assert anchors.num_with_probability.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 2]
    # (0.9 - 1)^2 + 0.95^2 + 0.2^2 = 0.01 + 0.9025 + 0.04
    assert anchors.brier() == pytest.approx(0.9525 / 3)
    # bin 9: |1 - 1.85| = 0.85 of two claims; bin 2: 0.2 of one
    assert anchors.calibration_error() == pytest.approx((0.85 + 0.2) / 3)
    assert math.isnan(AnchorAccuracy().accuracy())


def test_wilson_intervals():
    # Newcombe 1998, table I: 81 of 263 and 15 of 148
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert all(map(math.isnan, wilson(0, 0)))


def test_paired_difference_over_common_keys():
    a = {1: 1.0, 2: 2.0, 3: 3.0, 9: 5.0}
    b = {1: 2.0, 2: 4.0, 3: 6.0, 8: 5.0}
    found = paired_difference("q", a, b)
    # differences 1 2 3: mean 2, error 1 / sqrt 3, t = 3.4641 with 2 degrees: p = 0.0742
    assert (found.n, found.mean_a, found.mean_b, found.difference) == (3, 2.0, 4.0, 2.0)
    assert (found.low, found.high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert found.p_t == pytest.approx(0.0742, abs=1e-4)
    assert found.p_wilcoxon == pytest.approx(0.25)  # 2 / 2^3
    assert paired_difference("q", {1: 1.0}, {2: 1.0}).n == 0
    same = paired_difference("q", a, a)
    assert (same.n, same.difference) == (4, 0.0)
    assert math.isnan(same.p_t)
    assert math.isnan(same.p_wilcoxon)


def test_two_bounded_samples_keep_the_same_keys_in_any_order():
    keys = [str(number) for number in range(1000)]
    forward, backward = BoundedSample[int](10, seed=3), BoundedSample[int](10, seed=3)
    for key in keys:
        forward.put(key, int(key))
    for key in reversed(keys):
        backward.put(key, int(key))
    assert len(forward) == 10
    assert forward.items() == backward.items()
    assert not BoundedSample[int](0).admits("a")
    other = BoundedSample[int](10, seed=4)
    for key in keys:
        other.put(key, int(key))
    assert other.items() != forward.items()


def test_metrics_leave_out_null_and_what_is_not_whole(tmp_path):
    lines = [
        '{"step": 2, "data": {"a": 2, "b": null, "c": NaN, "d": 1' + "0" * 400 + "}}",
        '{"step": 1, "data": {"a": 1.5, "b": "text"}}',
        '{"step": 1, "data": {"val": 0.5}}',
        "",
        "[1]",
        '{"step": Infinity, "data": {}}',
        '{"step": 3, "data": {"a": 3',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics.columns == {"a": {1: 1.5, 2: 2.0}, "val": {1: 0.5}}
    assert list(metrics.series("a")) == [1, 2]
    assert (metrics.num_steps, metrics.num_broken_lines) == (2, 3)
    assert read_metrics(tmp_path / "none.jsonl").num_steps == 0
