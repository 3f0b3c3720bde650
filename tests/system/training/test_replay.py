"""Rollouts apart from training: saved, trained on without an engine, made without training."""

import pytest

from tests.system.smoke import metrics, rollouts
from vapo_verl.trainer.replay import META_FILE, read_step, saved_steps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

QUICK = (
    *("trainer.save_freq=-1", "trainer.test_freq=-1", "trainer.val_before_train=false"),
    "trainer.total_training_steps=2",
)
OF_THE_TIME = ("timing", "perf/", "vapo/memory/", "vapo/rollout/", "training/epoch")
"""Metrics of machine and engine."""


@pytest.fixture(scope="module")
def recorded(smoke):
    """A run that saved its rollouts."""
    return smoke.run("recorded", *QUICK, f"vapo.debug.save_rollouts={smoke.root / 'saved'}")


def test_training_on_saved_rollouts_is_the_training_that_saved_them(smoke, recorded):
    assert saved_steps(smoke.root / "saved") == [1, 2]
    again = smoke.run("again", *QUICK, f"vapo.debug.train_only={smoke.root / 'saved'}")
    assert "vLLM" not in smoke.log("again").split("training on ")[0].split("actor and")[-1]
    first, second = metrics(recorded), metrics(again)
    assert sorted(first) == sorted(second) == [1, 2]
    for step, values in first.items():
        names = {name for name in values if not name.startswith(OF_THE_TIME)}
        assert {"actor/pg_loss", "actor/grad_norm", "critic/advantages/mean"} <= names
        for name in names:
            assert second[step][name] == pytest.approx(values[name], rel=0, abs=0, nan_ok=True), (
                f"step {step}: {name}"
            )
        assert rollouts(again, step) == rollouts(recorded, step)


def test_rollouts_without_training_are_those_of_the_run(smoke, recorded):
    """In the first step; the second one samples from the same weights again."""
    run = smoke.run(
        "rollout_only",
        *QUICK,
        "vapo.debug.rollout_only=true",
        f"vapo.debug.save_rollouts={smoke.root / 'untrained'}",
    )
    responses = [
        [row["responses"].tolist() for row in read_step(smoke.root / folder, 1).rows]
        for folder in ("saved", "untrained")
    ]
    assert responses[0] == responses[1]
    for values in metrics(run).values():
        assert "actor/grad_norm" not in values
        assert values["vapo/reward/total"] > 0
    assert not list(run.glob("global_step_*"))


def test_damaged_rollouts_are_refused_by_name(smoke, recorded):
    """After the others, of which the folder is."""
    file = smoke.root / "saved" / "step_000001" / META_FILE
    file.write_text("{}")
    process = smoke.start("refused", *QUICK, f"vapo.debug.train_only={smoke.root / 'saved'}")
    assert process.wait(timeout=600) == 2
    assert f"{file.parent} holds no saved rollouts" in smoke.log("refused")
