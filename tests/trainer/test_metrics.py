"""Figures of a step, worked out by hand."""

import math
from collections import Counter

import pytest
import torch

from tests.sample_records import anchor_result, sample_record
from vapo_verl.config import VapoConfig
from vapo_verl.trainer.metrics import (
    FUNCTION_FAILED,
    anchor_metrics,
    attention_metrics,
    failure_metrics,
    has_metric,
    reward_metrics,
    signal_metrics,
    validation_metrics,
)
from vapo_verl.trainer.trainer import VapoTrainer


def anchor(position, correct, answer=True, prompt=100, cached=96, **values):
    return anchor_result(
        position,
        answer=answer,
        label=answer == correct,
        num_prompt_tokens=prompt,
        num_cached_tokens=cached,
        **values,
    )


def record(anchors=(), total=1.0, num_claims=20, times=(0, 0, 0, 0)):
    return sample_record(
        *anchors,
        reward={"format": 0.5, "total": total},
        num_claims=num_claims,
        num_claims_skipped=1,
        times=times,
        num_images=2,
    )


def judged(**verdicts):
    """A response whose predictions on true claims are correct or not."""
    return record([anchor(1, right, right, claim=claim) for claim, right in verdicts.items()])


def agreement(records, group_ids):
    return signal_metrics(records, group_ids, VapoConfig())["vapo/anchors/agreement"]


def test_agreement_is_of_pairs_that_judge_the_same_claim_of_the_same_prompt():
    records = [judged(red=True, large=True), judged(red=True, large=False), judged(red=False)]
    # red: 1 of 3 pairs agrees, large: 0 of 1; another prompt's claim of the same words is alone
    assert agreement([*records, judged(red=False)], ["a", "a", "a", "b"]) == 1 / 4
    assert math.isnan(agreement(records, ["a", "b", "c"]))


def test_failures_are_counted_by_what_failed():
    reasons = Counter(
        {"RewardFunctionFailed: a: KeyError": 2, "RewardFunctionFailed: b": 1, "ValueError: x": 4}
    )
    assert failure_metrics(reasons) == {FUNCTION_FAILED: 3}
    assert failure_metrics(Counter()) == {}


def test_reward_parts_are_means():
    metrics = reward_metrics([record(total=1.0), record(total=2.0)])
    assert metrics["vapo/reward/total"] == 1.5
    assert metrics["vapo/reward/format"] == 0.5


def test_anchor_figures():
    probed = record(
        [
            anchor(10, True),  # progress 1/3: early
            anchor(15, False, answer=False),  # 1/2: neither
            anchor(20, True, answer=False),  # 2/3: late
            anchor(30, False, own_boundary=False, cached=0),  # 1: late
        ],
        times=(0, 9.0, 9.5, 10.0),
    )
    metrics = anchor_metrics([probed, record(num_claims=0), record(), record()])
    expected = {
        "accuracy": 2 / 4,
        "accuracy_early": 1.0,
        "accuracy_late": 1 / 2,
        "yes_rate": 2 / 4,
        "probed_fraction": 1 / 4,
        "fallback_rate": 1 / 4,
        "prefix_hit_rate": 3 * 96 / 400,
        "probe_s": 0.5,
        "prefill_tokens": 3 * 4 + 100,
        "reused_tokens": 3 * 96,
        "encoder_runs_saved": 3 * 2,  # the fourth had nothing of its images in the cache
        "busy_s": 0.5,
        "tail_s": 1.0,  # from the end of the response, its grading included
        "tail_share": 0.1,
        "num_probes": 4,
        "rows_without_claims": 1 / 4,
        "claims_skipped": 4,
    }
    assert metrics == {f"vapo/anchors/{name}": pytest.approx(v) for name, v in expected.items()}


def test_probes_in_the_shadow_of_other_responses_add_nothing():
    one = anchor(10, True)
    records = [
        record([one], times=(0, 2, 2, 4)),
        record([one], times=(0, 3, 3, 5)),  # overlaps the first by a second
        record([one], times=(1, 7, 7, 8)),
        record(times=(0, 10, 10, 10)),  # the last response; it is not probed
    ]
    metrics = anchor_metrics(records)
    assert metrics["vapo/anchors/busy_s"] == 3 + 1
    assert metrics["vapo/anchors/tail_s"] == 0
    late = anchor_metrics([*records, record([one], times=(0, 9, 9, 12))])
    assert late["vapo/anchors/tail_s"] == 2
    assert late["vapo/anchors/tail_share"] == 2 / 12


def test_nothing_probed_is_nan_not_zero():
    metrics = anchor_metrics([record()])
    assert metrics["vapo/anchors/probed_fraction"] == 0
    assert math.isnan(metrics["vapo/anchors/accuracy"])
    assert math.isnan(metrics["vapo/anchors/probe_s"])


def test_attention_figures_leave_padding_and_missing_tokens_out():
    nan = float("nan")
    attention = torch.tensor([[0.6, 0.5, 0.4, 0.9], [0.3, nan, 0.1, 0.9]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0]])
    metrics = attention_metrics(attention, mask)
    # progress 1/3, 2/3, 1 in both rows
    assert metrics["vapo/attention/mean"] == pytest.approx((0.6 + 0.5 + 0.4 + 0.3 + 0.1) / 5)
    assert metrics["vapo/attention/early"] == pytest.approx((0.6 + 0.3) / 2)
    assert metrics["vapo/attention/late"] == pytest.approx((0.5 + 0.4 + 0.1) / 3)
    # x = 1/3, 2/3, 1, 1/3, 1 with mean 2/3; y as above: sum of products -1/3 * 0.9 + 1/3 * 0.5
    slope = (-1 / 3 * 0.9 + 1 / 3 * 0.5) / (4 / 9)
    assert metrics["vapo/attention/slope"] == pytest.approx(slope)


def test_no_attention_at_all_is_nan():
    metrics = attention_metrics(torch.full((2, 3), float("nan")), torch.ones(2, 3))
    assert metrics.pop("vapo/attention/missing_fraction") == 1
    assert all(math.isnan(value) for value in metrics.values())
    assert len(metrics) == 4


def test_validation_metrics_are_named_by_data_source():
    sources = ["hiyouga/geometry3k", "quiz", "quiz", "quiz"]
    infos = {
        "reward": [1.5, 1.5, 0.0, 0.0],
        "acc": [1.0, 1.0, 0.0, 0.0],
        "perception": [0.75, None, None, None],
        "unparsed": [None, 0.0, 1.0, 1.0],
        "truncated": [None, 0.0, 0.0, 1.0],
        "pred": ["4", "A", "B", "C"],
    }
    assert validation_metrics(sources, infos) == pytest.approx(
        {
            "val/hiyouga/geometry3k/accuracy": 1.0,
            "val/hiyouga/geometry3k/perception": 0.75,
            "val/quiz/accuracy": 1 / 3,
            "val/quiz/unparsed": 2 / 3,
            "val/quiz/truncated": 1 / 3,
        }
    )


@pytest.fixture
def validated():
    """What a trainer makes of a validation's responses, by veRL's own method."""

    def of(sources, uids, infos, expected):
        trainer = object.__new__(VapoTrainer)
        return trainer._val_metrics_update(sources, uids, infos, [], expected_acc_counts=expected)

    return of


def test_a_response_that_failed_in_a_validation_is_not_incorrect(validated):
    infos = {"acc": [1.0, 0.0, 1.0], "perception": [0.5, None, 1.0], "reward": [1.5, 0.0, 1.5]}
    expected = {("quiz", "a"): 2, ("quiz", "b"): 2}  # the second response of b failed
    values = validated(["quiz"] * 3, ["a", "a", "b"], infos, expected)
    assert values["val/quiz/accuracy"] == pytest.approx(2 / 3)
    assert values["val/quiz/perception"] == pytest.approx(0.75)  # of a mean@1 and a mean@1
    assert not any("success_only" in name for name in values)


def test_a_name_that_some_responses_do_not_report_is_averaged_over_the_others(validated):
    infos = {  # None is what veRL's validation fills in
        "reward": [1.0, 0.0, 1.0, 0.0],
        "acc": [1.0, 0.0, 1.0, 0.0],
        "steps": [2.0, None, None, 6.0],
        "pred": ["7", None, None, "8"],
    }
    values = validated(["quiz"] * 4, ["a", "a", "b", "b"], infos, None)
    assert values["val-aux/quiz/steps/mean@1"] == pytest.approx((2 + 6) / 2)
    assert values["val-core/quiz/acc/mean@2"] == pytest.approx(2 / 4)
    assert not any("/maj@" in name for name in values)  # each prompt lacks one of its votes


def test_an_unknown_metric_of_the_best_checkpoint_is_refused_with_those_there_are():
    values = {"val/quiz/accuracy": 0.5, "val/quiz/unparsed": 0.1}
    new = {"is_recorded": False, "probes_claims": False}
    assert has_metric(values, "val/quiz/accuracy", **new)
    for name in ("val/quiz/acc", "val/quiz/perception", "val/other/perception"):
        with pytest.raises(ValueError, match=rf"vapo\.keep_best={name}: .*val/quiz/accuracy, val"):
            has_metric(values, name, **new)
    with pytest.raises(ValueError, match="other"):
        has_metric(values, "val/other/perception", is_recorded=False, probes_claims=True)


@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_validation_without_a_correct_response_has_no_perception(is_recorded):
    values, name = {"val/quiz/accuracy": 0.0}, "val/quiz/perception"
    assert not has_metric(values, name, is_recorded=is_recorded, probes_claims=True)
    assert not has_metric({}, name, is_recorded=True, probes_claims=True)  # all responses failed
