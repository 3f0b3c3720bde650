"""VAPO on the asynchronous trainers: interrupted by new weights, stopped, resumed."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.system.smoke import Smoke, metrics, rollouts
from vapo_verl.run_folder.checkpoints import complete_steps
from vapo_verl.trainer.stopping import EXIT_STOPPED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 3
SHORT = (
    f"trainer.total_training_steps={STEPS}",
    "trainer.save_freq=2",
    f"trainer.test_freq={STEPS}",
    "trainer.val_before_train=false",
    "data.val_max_samples=16",
    "vapo.attention.enabled=true",
    "vapo.logging.num_rollout_samples=80",  # all of a step
)
SLOW_ENGINE = "actor_rollout_ref.rollout.max_num_seqs=8"
"""Responses still decode when new weights come."""
COLOCATED = "trainer.v1.trainer_mode=vapo_colocate_async"
MODES = {
    "colocate": ("smoke", (COLOCATED, SLOW_ENGINE)),
    "separate": ("smoke_async", (SLOW_ENGINE,)),
}
OFF_POLICY = "training/off_policy"
DEADLINE_S = 900


@pytest.fixture(scope="module", params=MODES)
def finished(request, tmp_path_factory, digits_data) -> Path:
    """Three steps, with a stop on request after the first and a resume."""
    recipe, mode = MODES[request.param]
    smoke = Smoke(tmp_path_factory.mktemp("async"), digits_data(train=128, val=16), recipe)
    process = smoke.start(request.param, *SHORT, *mode)
    logged, end = smoke.root / request.param / "metrics.jsonl", time.monotonic() + DEADLINE_S
    while not (logged.exists() and '"step": 1' in logged.read_text()):
        assert process.poll() is None, smoke.log(request.param)[-6000:]
        assert time.monotonic() < end, smoke.log(request.param)[-6000:]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=600) == EXIT_STOPPED, smoke.log(request.param)[-6000:]
    saved = complete_steps(logged.parent)[-1]
    assert max(metrics(logged.parent)) == saved < STEPS, "a step is all or nothing"
    return smoke.run(request.param, *SHORT, *mode)


@pytest.fixture(scope="module")
def responses(finished):
    """Rows of the rollout files of all steps."""
    return [row for step in range(1, STEPS + 1) for row in rollouts(finished, step)]


def test_a_stopped_run_goes_on_without_gap_or_repeat(finished):
    assert sorted(metrics(finished)) == list(range(1, STEPS + 1))
    assert complete_steps(finished)[-1] == STEPS
    assert "val-core/digits/acc/mean@1" in metrics(finished)[STEPS]


def test_no_response_is_trained_on_twice(responses):
    names = [(row["uid"], row["sample"]) for row in responses]
    assert len(names) == len(set(names)) == STEPS * 80


def test_versions_are_those_of_earlier_steps(responses):
    for row in responses:
        assert 0 <= row["min_policy_version"] <= row["max_policy_version"] < row["step"]


def test_some_responses_are_older_than_the_policy_that_trains_on_them(finished, responses):
    assert any(row["max_policy_version"] < row["step"] - 1 for row in responses)
    worst = f"{OFF_POLICY}/trajectory_staleness_worst/max"
    assert max(values[worst] for values in metrics(finished).values()) > 0


def test_some_responses_were_interrupted_and_are_complete(responses):
    parts = [r for r in responses if r["min_policy_version"] < r["max_policy_version"]]
    assert parts
    for row in parts:
        assert len(row["visual_attention"]) == len(row["response_ids"])
        assert len(row["rollout_log_probs"]) == len(row["response_ids"])


def test_every_token_has_its_attention(responses):
    assert not np.isnan(np.concatenate([row["visual_attention"] for row in responses])).any()


def test_probes_are_answered_by_the_policy_that_wrote_the_last_token(responses):
    probed = [row for row in responses if row["anchors"]]
    assert probed
    for row in probed:
        assert row["probe_policy_version"] == row["max_policy_version"]


def test_log_probs_of_responses_by_the_last_policy_are_those_of_the_actor(responses):
    """In fp32 they differ by rounding only: the actor's old policy is the one they are named by."""
    fresh = [row for row in responses if row["min_policy_version"] == row["step"] - 1]
    assert fresh
    for row in fresh:
        np.testing.assert_allclose(row["rollout_log_probs"], row["old_log_probs"], atol=2e-3)


def test_log_probs_of_older_responses_are_of_another_policy(responses):
    stale = [row for row in responses if row["max_policy_version"] < row["step"] - 1]
    apart = [
        np.abs(np.subtract(row["rollout_log_probs"], row["old_log_probs"])).max() for row in stale
    ]
    assert max(apart) > 1e-2


def test_without_warm_up_the_colocated_trainer_is_the_synchronous_one(smoke):
    """No response is interrupted then, and each step trains on its own prompts."""
    short = (*SHORT[:2], "trainer.total_training_steps=2", "trainer.test_freq=-1", *SHORT[3:])
    runs = [
        smoke.run("sync", *short),
        smoke.run(
            "no_warm_up", *short, COLOCATED, "trainer.v1.colocate_async.num_warmup_batches=0"
        ),
    ]
    for step in (1, 2):
        first, second = (rollouts(run, step) for run in runs)
        assert [row["response_ids"] for row in first] == [row["response_ids"] for row in second]
        names = ("actor/pg_loss", "actor/kl_loss", "actor/grad_norm", "vapo/reward/total")
        first, second = (metrics(run)[step] for run in runs)
        assert [first[name] for name in names] == [second[name] for name in names]
