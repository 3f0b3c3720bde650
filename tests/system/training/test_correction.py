"""Rollout correction in training: weights, rejection, and the mismatch that is logged.

The runs train on saved rollouts, whose log probabilities are those of the engine.
"""

import math

import pytest

from tests.system.smoke import metrics
from vapo_verl.rollout.correction import DIFF_MAX, DIFF_MEAN, KEY, RATIO_MEAN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_on_one_machine_in_float32_weights_are_1_and_nothing_is_rejected(recorded):
    """The engine's weights are the trainer's, and both compute in float32."""
    run = recorded.train_again(
        "weighted",
        f"{KEY}.rollout_is=token",
        f"{KEY}.rollout_rs=seq_mean_k1",
        f"{KEY}.rollout_rs_threshold='0.99_1.01'",
    )
    steps = metrics(run)
    assert sorted(steps) == [1, 2, 3]
    for step, values in steps.items():
        assert 0 <= values[DIFF_MEAN] < 1e-3
        assert values[DIFF_MAX] < 0.1  # of one rare token
        assert values[RATIO_MEAN] == pytest.approx(1, abs=1e-3)
        assert values["rollout_corr/rollout_is_mean"] == pytest.approx(1, abs=1e-3)
        assert values["rollout_corr/rollout_is_eff_sample_size"] == pytest.approx(1, abs=1e-3)
        assert values["rollout_corr/rollout_rs_masked_fraction"] == 0
        assert math.isfinite(values["actor/pg_loss"])
        plain = metrics(recorded.run)[step]
        assert values["actor/grad_norm"] == pytest.approx(plain["actor/grad_norm"], rel=0.01)
