"""A user's reward function in a training run, beside the perception reward."""

import pytest

from tests.system.smoke import metrics, rollouts
from vapo_verl.rollout.outcome import FUNCTION_FAILED, FUNCTION_KEY
from vapo_verl.trainer.replay_buffer import FAILED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FUNCTION = '''
async def shaped(data_source, solution_str, ground_truth, extra_info, floor):
    """Correct answers get 1, others `floor`; a quarter of the rows cannot be graded."""
    if extra_info["index"] % 4 == 0:
        raise LookupError("no key for this row")
    correct = f"boxed{{{ground_truth}}}" in solution_str
    return {"score": 1.0 if correct else floor, "acc": correct, "characters": len(solution_str)}
'''


def test_a_users_function_trains_with_anchors_and_its_failures_are_counted(smoke):
    path = smoke.root / "shaped.py"
    path.write_text(FUNCTION)
    run = smoke.run(
        "function",
        *("trainer.save_freq=-1", "trainer.test_freq=-1", "trainer.val_before_train=false"),
        "trainer.total_training_steps=2",
        f"{FUNCTION_KEY}.path=shaped.py",  # relative: the run starts in this folder
        f"{FUNCTION_KEY}.name=shaped",
        f"+{FUNCTION_KEY}.reward_kwargs.floor=0.25",
        "vapo.rollout.max_failed_fraction=0.8",
    )
    failed = 0
    for step, values in metrics(run).items():
        assert values[FUNCTION_FAILED] == values[FAILED]
        assert values[FUNCTION_FAILED] % 5 == 0  # all responses to a prompt
        failed += values[FUNCTION_FAILED]
        assert 0.25 < values["vapo/reward/accuracy"] < 1
        assert values["vapo/reward/user/characters"] > 0
        assert values["actor/grad_norm"] > 0
        for row in rollouts(run, step):
            reward = row["reward"]
            assert reward["accuracy"] in (0.25, 1.0)
            assert len(row["anchors"]) == (8 if reward["accuracy"] == 1 else 0)
            earned = reward["perception"] if reward["accuracy"] == 1 else 0
            assert reward["total"] == pytest.approx(
                reward["accuracy"] + reward["format"] + 0.1 * earned
            )
    assert failed > 0
    assert "RewardFunctionFailed: " in smoke.log("function")
    assert "shaped.py:shaped: LookupError: no key for this row" in smoke.log("function")
