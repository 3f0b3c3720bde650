"""The main job for real: rollout, anchors, update, weight sync, validation, checkpoint, resume."""

import pytest
import torch
from omegaconf import OmegaConf

from tests.system.smoke import metrics, rollouts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 4
SHORT = (
    f"trainer.total_training_steps={STEPS}",
    "trainer.save_freq=2",
    f"trainer.test_freq={STEPS}",
)
CONTRACT = {
    *(f"vapo/reward/{part}" for part in ("accuracy", "format", "perception", "total")),
    *(
        f"vapo/anchors/{name}"
        for name in (
            "accuracy",
            "accuracy_early",
            "accuracy_late",
            "agreement",
            "yes_rate",
            "probed_fraction",
            "fallback_rate",
            "prefix_hit_rate",
            "probe_s",
            "prefill_tokens",
            "reused_tokens",
            "encoder_runs_saved",
            "busy_s",
            "tail_s",
            "tail_share",
            "step_share",
        )
    ),
    *(f"vapo/attention/{name}" for name in ("mean", "early", "late", "slope", "missing_fraction")),
    *(
        f"vapo/memory/{phase}_gib"
        for phase in ("rollout", "old_log_prob", "ref", "update_actor", "update_weights")
    ),
}
CORRELATION = "training/rollout_actor_probs_pearson_corr"


@pytest.fixture(scope="module")
def straight(smoke):
    """One uninterrupted run."""
    return smoke.run("straight", *SHORT)


def test_every_step_has_the_contracts_metrics(straight):
    steps = metrics(straight)
    assert sorted(steps) == list(range(STEPS + 1))
    for step in range(1, STEPS + 1):
        assert set(steps[step]) >= CONTRACT
        assert any(name.startswith("vapo/advantage/") for name in steps[step])


def test_rollout_and_actor_agree_on_every_probability(straight):
    """In fp32 the two differ by rounding only: weight sync, positions and masks are right."""
    correlations = [values[CORRELATION] for step, values in metrics(straight).items() if step]
    assert len(correlations) == STEPS
    assert min(correlations) >= 0.9999, correlations


def test_validation_runs_before_and_after(straight):
    for step in (0, STEPS):
        assert "val-core/digits/acc/mean@1" in metrics(straight)[step]


def test_the_policy_moves_and_what_it_learns_from_is_not_flat(straight):
    steps = [values for step, values in metrics(straight).items() if step]
    assert all(values["actor/grad_norm"] > 0 for values in steps)
    assert any(values["actor/kl_loss"] > 0 for values in steps)
    assert all(0 < values["vapo/reward/accuracy"] < 1 for values in steps)
    assert all(
        values["vapo/anchors/probed_fraction"] == values["vapo/reward/accuracy"] for values in steps
    )


def test_probes_find_their_prefix_in_the_cache(straight):
    hits = [values["vapo/anchors/prefix_hit_rate"] for s, values in metrics(straight).items() if s]
    assert min(hits) > 0.3, hits


def test_the_anchor_question_is_tried_out_before_the_first_step(smoke, straight):
    assert smoke.log("straight").count("anchor format check: 64 probes") == 1


def test_the_run_folder_is_complete(straight):
    names = {path.name for path in straight.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "rollouts", "global_step_2", "global_step_4"} <= names
    config = OmegaConf.load(straight / "config.yaml")
    assert config.vapo.anchors.num_anchors == 8
    assert (straight / "latest_checkpointed_iteration.txt").read_text() == str(STEPS)


def test_sampled_rollouts_hold_anchors_that_match_their_rows(straight):
    rows = rollouts(straight, 1)
    assert len(rows) == 16
    for row in rows:
        length = len(row["tokens"])
        assert len(row["visual_attention"]) == len(row["advantages"]) == length
        assert row["reward"]["total"] == pytest.approx(
            row["reward"]["accuracy"]
            + row["reward"]["format"]
            + 0.1 * row["reward"]["perception"] * (row["reward"]["accuracy"] == 1)
        )
        assert len(row["anchors"]) == (8 if row["reward"]["accuracy"] == 1 else 0)
        assert all(1 <= anchor["position"] <= length for anchor in row["anchors"])


def test_starting_a_finished_run_again_says_so_and_changes_nothing(smoke, straight):
    before = (straight / "metrics.jsonl").read_bytes()
    smoke.run("straight", *SHORT)
    assert "nothing to do" in smoke.log("straight")
    assert (straight / "metrics.jsonl").read_bytes() == before


def test_the_engine_writes_the_same_response_with_and_without_anchors(smoke, straight):
    one_step = ("trainer.total_training_steps=1", "trainer.save_freq=-1", "trainer.test_freq=-1")
    plain = smoke.run(
        "no_anchors",
        *SHORT,
        *one_step,
        "vapo.anchors.num_anchors=0",
        "trainer.val_before_train=false",
        "vapo.logging.console=short",
    )
    assert [row["tokens"] for row in rollouts(plain, 1)] == [
        row["tokens"] for row in rollouts(straight, 1)
    ]


def test_a_short_console_has_what_matters_and_the_log_the_rest(smoke):
    """Of the run of the test before this one."""
    shown = smoke.log("no_anchors").splitlines()
    assert len(shown) <= 30
    for part in ("Ray: ", "actor and reference on 1 rank: ", "vLLM: ", "step 1/1 | ", "Done. "):
        assert any(line.startswith(part) for line in shown), part
    log = (smoke.root / "no_anchors" / "console.log").read_text()
    assert "ray init kwargs" in log
    assert "step 1/1 | " in log


def test_killed_and_resumed_is_the_straight_run(smoke, straight):
    """``kill -9`` while step 3 runs: steps 3 and 4 are repeated from the checkpoint of step 2."""
    process = smoke.start("killed", *SHORT)
    smoke.kill_when(process, smoke.root / "killed" / "rollouts" / "step_000003.parquet")
    half = smoke.root / "killed" / "global_step_3" / "actor"
    half.mkdir(parents=True)  # as a kill in the middle of a save leaves it
    resumed = smoke.run("killed", *SHORT)

    assert "resuming from step 2" in smoke.log("killed")
    one, other = metrics(straight), metrics(resumed)
    assert sorted(one) == sorted(other)
    for step in range(1, STEPS + 1):
        prompts = [[row["prompt"] for row in rollouts(run, step)] for run in (straight, resumed)]
        assert prompts[0] == prompts[1], f"step {step} saw other data"
        for name in ("vapo/reward/total", "actor/pg_loss", "actor/grad_norm", "actor/entropy"):
            assert other[step][name] == pytest.approx(one[step][name], rel=1e-3, abs=1e-4), name


def test_two_ranks_train_the_same_recipe(smoke):
    run = smoke.run("two_ranks", *SHORT, "trainer.n_gpus_per_node=2", "trainer.save_freq=4")
    steps = metrics(run)
    assert min(steps[step][CORRELATION] for step in range(1, STEPS + 1)) >= 0.9999
    shards = sorted(path.name for path in (run / "global_step_4" / "actor").glob("model_*.pt"))
    assert shards == [f"model_world_size_2_rank_{rank}.pt" for rank in range(2)]
    states = [
        torch.load(run / "global_step_4" / "actor" / shard, weights_only=False) for shard in shards
    ]
    assert set(states[0]) == set(states[1])


def test_a_reference_in_bfloat16_is_the_actor_before_its_first_update(smoke):
    """The packaged weights are exact in bfloat16: rounded rotary frequencies would show as a KL."""
    run_dir = smoke.run(
        "bf16_reference",
        "actor_rollout_ref.ref.fsdp_config.model_dtype=bf16",
        "actor_rollout_ref.actor.ppo_mini_batch_size=16",  # one update a step
        "trainer.total_training_steps=1",
    )
    assert abs(metrics(run_dir)[1]["actor/kl_loss"]) < 1e-9  # 5e-7 with rounded ones
