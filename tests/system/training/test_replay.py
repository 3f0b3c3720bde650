"""Rollouts apart from training: saved, trained on without an engine, made without training."""

import pytest

from tests.system.smoke import metrics, rollouts
from tests.system.training.regression import OVERRIDES
from vapo_verl.trainer.replay import read_step, saved_steps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

OF_THE_TIME = (
    "timing",
    "perf/",
    "actor/perf/",
    "vapo/memory/",
    "vapo/anchors/step_share",
    "vapo/rollout/loop",
    "vapo/rollout/server_loop",
)
"""Metrics of machine and engine."""


def test_training_on_saved_rollouts_is_the_training_that_saved_them(recorded):
    assert saved_steps(recorded.saved) == [1, 2, 3]
    again = recorded.train_again("again")
    assert "\nvLLM: " not in recorded.smoke.log("again")
    first, second = metrics(recorded.run), metrics(again)
    assert sorted(first) == sorted(second) == [1, 2, 3]
    for step, values in first.items():
        names = {name for name in values if not name.startswith(OF_THE_TIME)}
        assert {"actor/pg_loss", "actor/grad_norm", "critic/advantages/mean"} <= names
        differing = {
            name: (values[name], second[step].get(name))
            for name in names
            if second[step].get(name) != values[name]  # nan is null in the file
        }
        assert not differing, f"step {step}"
        assert repr(rollouts(again, step)) == repr(rollouts(recorded.run, step))  # nan as nan


def test_rollouts_without_training_are_those_of_the_run(recorded):
    smoke = recorded.smoke
    run = smoke.run(
        "rollout_only",
        *OVERRIDES,
        "trainer.total_training_steps=1",
        "vapo.debug.rollout_only=true",
        f"vapo.debug.save_rollouts={smoke.root / 'untrained'}",
    )
    responses = [
        [row["responses"].tolist() for row in read_step(smoke.root / folder, 1).rows]
        for folder in ("saved", "untrained")
    ]
    assert responses[0] == responses[1]
    [values] = metrics(run).values()
    assert "actor/grad_norm" not in values
    assert values["vapo/reward/total"] > 0
    assert not list(run.glob("global_step_*"))


def test_rollouts_that_are_not_there_are_refused_by_name(recorded, tmp_path):
    process = recorded.smoke.start("refused", *OVERRIDES, f"vapo.debug.train_only={tmp_path}")
    assert process.wait(timeout=600) == 2
    assert f"{tmp_path} holds no saved rollouts" in recorded.smoke.log("refused")
