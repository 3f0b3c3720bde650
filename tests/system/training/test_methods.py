"""Three steps of every method of another paper, on the smoke recipe."""

import math

import pytest

from tests.system.smoke import Smoke, metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 3
SHORT = (
    f"trainer.total_training_steps={STEPS}",
    *("trainer.save_freq=-1", "trainer.test_freq=-1", "trainer.val_before_train=false"),
    *("vapo.anchors.num_anchors=0", "vapo.reward.perception_source=none"),
)
RUNS = {
    "none": (),
    "vgpo": ("vapo.method.name=vgpo", "vapo.attention.enabled=true"),
    "gspo": (
        "actor_rollout_ref.actor.policy_loss.loss_mode=gspo",
        "actor_rollout_ref.actor.clip_ratio_low=3e-4",
        "actor_rollout_ref.actor.clip_ratio_high=4e-4",
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
    ),
    "dr_grpo": (
        "vapo.advantage.normalize_by_std=false",
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm",
        "actor_rollout_ref.actor.loss_scale_factor=160",
    ),
    "noisy_rollout": (
        "vapo.method.name=noisy_rollout",
        "+vapo.method.options.mid_step=2",
        "+vapo.method.options.steepness=1",
    ),
    "papo": ("vapo.method.name=papo",),
    "vppo": ("vapo.method.name=vppo",),
}


@pytest.fixture(scope="module")
def steps_of(smoke):
    """Metrics by step of a run, which is made once."""
    done = {}

    def run(name):
        if name not in done:
            done[name] = metrics(smoke.run(f"method_{name}", *SHORT, *RUNS[name]))
        return done[name]

    return run


@pytest.mark.parametrize("name", RUNS)
def test_three_steps(steps_of, name):
    steps = steps_of(name)
    assert sorted(steps) == [1, 2, 3]
    for step in steps.values():
        assert math.isfinite(step["actor/pg_loss"]) and step["actor/grad_norm"] > 0
        own = {key for key in step if key.startswith(f"vapo/{name}/")}
        assert bool(own) == (name in {"vgpo", "noisy_rollout", "papo", "vppo"})
        assert all(math.isfinite(step[key]) for key in own)
        assert not [key for key in step if key.startswith("actor/vapo")]


@pytest.mark.parametrize("name", ["vgpo", "gspo", "dr_grpo", "papo", "vppo"])
def test_the_first_rollout_is_that_of_grpo(steps_of, name):
    """Until the first update, only what is made of the responses differs."""
    plain, other = steps_of("none")[1], steps_of(name)[1]
    for key in ("response_length/mean", "vapo/reward/total"):
        assert other[key] == plain[key], key
    if not any("loss_agg_mode" in setting for setting in RUNS[name]):  # it averages entropy, too
        assert other["actor/entropy"] == plain["actor/entropy"]
    assert other["actor/grad_norm"] != plain["actor/grad_norm"]


def test_noised_images_are_seen_and_the_update_is_on_the_clean_ones(steps_of):
    plain, noisy = steps_of("none")[1], steps_of("noisy_rollout")[1]
    assert noisy["vapo/noisy_rollout/noise_step"] > 200
    assert noisy["vapo/noisy_rollout/accuracy_noisy"] != noisy["vapo/noisy_rollout/accuracy_clean"]
    name = "training/rollout_actor_probs_pearson_corr"
    assert plain[name] > 0.9999 > noisy[name]  # the engine's probabilities are of other images


def test_masked_images_change_what_the_policy_expects(steps_of):
    for step in steps_of("papo").values():
        assert step["vapo/papo/perception_loss"] < 0 < step["vapo/papo/entropy_loss"]
        assert step["vapo/papo/masked_entropy_loss"] > step["vapo/papo/entropy_loss"]
    for step in steps_of("vppo").values():
        assert step["vapo/vppo/dependency_trained"] > step["vapo/vppo/dependency_left_out"]
        assert 0.4 <= step["vapo/vppo/trained_fraction"] < 0.45


@pytest.mark.parametrize("name", ["papo", "vppo"])
def test_masked_images_are_seen_by_the_weights_of_the_step_on_the_separate_trainer(
    name, tmp_path, digits_data
):
    """It has updated its weights by then, and takes them back for that pass."""
    smoke = Smoke(tmp_path, digits_data(train=128, val=16), "smoke_async")
    steps = metrics(smoke.run(name, *SHORT, *RUNS[name]))
    assert sorted(steps) == [1, 2, 3]
    for step in steps.values():
        own = {key: value for key, value in step.items() if key.startswith(f"vapo/{name}/")}
        assert own and all(map(math.isfinite, own.values())) and step["actor/grad_norm"] > 0
        if name == "papo":
            assert own["vapo/papo/perception_loss"] < 0
        else:
            assert 0.4 <= own["vapo/vppo/trained_fraction"] < 0.45
