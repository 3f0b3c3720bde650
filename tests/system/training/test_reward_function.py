"""R_acc by a user's function, and by a judge, in training runs, beside the perception reward."""

import re

import pytest

from tests.evaluation.benchmarks.chat_server import Reply, Request, chat_server
from tests.system.smoke import metrics, rollouts
from vapo_verl.rollout.reward_function import FUNCTION_KEY
from vapo_verl.rollout.reward_judge import JUDGE_KEY
from vapo_verl.trainer.metrics import FUNCTION_FAILED, JUDGE_FAILED
from vapo_verl.trainer.replay_buffer import FAILED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FUNCTION = '''
async def shaped(data_source, solution_str, ground_truth, extra_info, floor, every=4):
    """Correct answers get 1, others `floor`; every fourth row cannot be graded."""
    if extra_info["index"] % every == 0:
        raise LookupError("no key for this row")
    correct = f"boxed{{{ground_truth}}}" in solution_str
    return {"score": 1.0 if correct else floor, "acc": correct, "characters": len(solution_str)}
'''

SHORT = (
    *("trainer.save_freq=-1", "trainer.test_freq=-1", "trainer.val_before_train=false"),
    *("trainer.total_training_steps=2", "vapo.rollout.max_failed_fraction=0.8"),
)
CASE = re.compile(r"Ground truth: (.+)\n\nResponse:\n(\[\w+\])\n(.*)\n\2\n", re.DOTALL)


def test_a_users_function_trains_with_anchors_and_its_failures_are_counted(smoke):
    path = smoke.root / "shaped.py"
    path.write_text(FUNCTION)
    run = smoke.run(
        "function",
        *SHORT,
        f"{FUNCTION_KEY}.path=shaped.py",  # relative: the run starts in this folder
        f"{FUNCTION_KEY}.name=shaped",
        f"+{FUNCTION_KEY}.reward_kwargs.floor=0.25",
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


def test_without_updates_failures_leave_responses_and_steps_go_beyond_the_epochs(smoke):
    """75 of 80 responses are left of each step, which is a pass over the 16 rows."""
    (smoke.root / "shaped.py").write_text(FUNCTION)
    run = smoke.run(
        "without_updates",
        *SHORT,
        "vapo.debug.rollout_only=true",
        *("data.train_max_samples=16", "trainer.total_epochs=1"),
        *(f"{FUNCTION_KEY}.path=shaped.py", f"{FUNCTION_KEY}.name=shaped"),
        f"+{FUNCTION_KEY}.reward_kwargs={{floor: 0.25, every: 16}}",
    )
    assert {step: values[FAILED] for step, values in metrics(run).items()} == {1: 5, 2: 5}


def decision(request: Request) -> Reply:
    """Numbers are graded; the endpoint refuses requests about colours."""
    truth, _, prediction = CASE.search(request.text).groups()
    if not truth.isdigit():
        return Reply(status=400)
    return Reply(text="correct" if f"{{{truth}}}" in prediction else "incorrect")


def test_a_judge_grades_a_run_and_refused_requests_are_counted(smoke, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with chat_server(decision) as server:
        run = smoke.run(
            "judge",
            *SHORT,
            "vapo.reward.answer_style=judge",
            *(f"{JUDGE_KEY}.model=scripted", f"{JUDGE_KEY}.base_url={server.url}"),
        )
    asked = [request.text for request in server.requests]
    decided = [text for text in asked if CASE.search(text)[1].isdigit()]
    assert len(decided) == len({*decided}) > 0  # of equal answers once; refused ones again
    assert len(asked) > len(decided)
    graded = failed = 0
    for step, values in metrics(run).items():
        assert values[JUDGE_FAILED] == values[FAILED]
        assert values["actor/grad_norm"] > 0
        failed += values[JUDGE_FAILED]
        for row in rollouts(run, step):
            correct = f"boxed{{{row['ground_truth']}}}" in row["response"]
            assert row["ground_truth"].isdigit()
            assert row["reward"]["accuracy"] == correct
            assert len(row["anchors"]) == (8 if correct else 0)
            graded += 1
    assert graded > 0 and failed > 0
    assert "JudgeFailed: " in smoke.log("judge")
    assert not [p for p in run.rglob("*") if p.is_file() and b"sk-secret" in p.read_bytes()]
    assert "sk-secret" not in smoke.log("judge")
