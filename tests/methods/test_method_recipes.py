"""What distinguishes the recipes of other papers' methods, and what their checks refuse."""

import sys

import pytest
from omegaconf import OmegaConf

from tests.composing import compose_once
from vapo_verl import preflight
from vapo_verl.config import MethodConfig, vapo_config
from vapo_verl.methods import METHODS, method_of, short_name

VGPO = ["vapo.method.name=vgpo"]
CORRECTION = "algorithm.rollout_correction"
BYPASS = f"{CORRECTION}.bypass_mode=true"


def settled(recipe, *overrides):
    config = compose_once(recipe, overrides)
    OmegaConf.resolve(config)
    return config, vapo_config(OmegaConf.to_container(config.vapo))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_a_recipe_of_its_name_and_defaults_that_pass(name):
    method = method_of(MethodConfig(name=name))
    if name != "none":
        config, settings = settled(name)
        assert method_of(settings.method) == method, "the recipe repeats no default"
        assert settings.anchors.num_anchors == 0
        preflight.check_method(config)


def test_the_default_is_no_method():
    assert vapo_config({}).method == MethodConfig(name="none")
    method = method_of(MethodConfig())
    assert not (method.weighs_tokens or method.adds_losses or method.mask_fraction)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["vapo.method.name=ppo"], r"use one of none, vgpo.* or the path of a class of yours"),
        (["+vapo.method.options.coef=1"], "set vapo.method.name"),
        (VGPO, "vapo.attention.enabled=true"),
        (
            [*VGPO, "vapo.attention.enabled=true", "vapo.advantage.attention_coef=0.3"],
            "attention_coef=0.3",
        ),
        ([*VGPO, "+vapo.method.options.beta=1"], "options.beta is not a setting"),
        (["vapo.method.name=vppo", BYPASS], "bypass_mode=true takes the engine's"),
        (["vapo.method.name=noisy_rollout", BYPASS], "bypass_mode=true takes the engine's"),
        *(
            (["vapo.method.name=noisy_rollout", f"{CORRECTION}.{key}"], "take back what the method")
            for key in ("rollout_is=token", "rollout_is=sequence", "rollout_rs=token_k1")
        ),
    ],
)
def test_a_method_without_what_it_needs_is_refused(overrides, message):
    config, _ = settled("smoke", *overrides)
    with pytest.raises(ValueError, match=message):
        preflight.check_method(config)


OF_A_USER = """
from dataclasses import dataclass
from typing import ClassVar

from vapo_verl.methods import Method, require

frozen = dataclass(frozen=True, slots=True, kw_only=True)


@frozen
class LateTokens(Method):
    needs_attention: ClassVar[bool] = True
    start: float = 0.5

    def __post_init__(self):
        require(0 <= self.start < 1, "start", self.start, "0 or more, below 1")


class Bare(Method):
    start: float = 0.5


@frozen
class Required(Method):
    start: float


class Other:
    pass
"""


@pytest.fixture
def of_a_user(tmp_path, monkeypatch):
    """`tokens_of_mine.methods` with methods, and `tokens_of_mine.broken`."""
    package = tmp_path / "tokens_of_mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "methods.py").write_text(OF_A_USER)
    (package / "broken.py").write_text("raise RuntimeError('not today')")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == package.name]:
        del sys.modules[name]


def test_a_class_of_a_users_package_is_a_method(of_a_user):
    name = "tokens_of_mine.methods.LateTokens"
    method = method_of(MethodConfig(name=name, options={"start": 0.25}))
    assert type(method).__name__ == "LateTokens" and method.start == 0.25
    with pytest.raises(ValueError, match=r"options\.start=1\.5 is out of range"):
        method_of(MethodConfig(name=name, options={"start": 1.5}))
    with pytest.raises(ValueError, match="is not a setting; use one of start"):
        method_of(MethodConfig(name=name, options={"begin": 0.5}))
    config, _ = settled("smoke", f"vapo.method.name={name}")
    with pytest.raises(ValueError, match=rf"{name} reads visual attention; set vapo\.attention"):
        preflight.check_method(config)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nope_pkg.methods.Mine", "cannot be imported .*No module named 'nope_pkg'.*PYTHONPATH"),
        ("tokens_of_mine.nope.Mine", "cannot be imported .*No module named 'tokens_of_mine.nope'"),
        ("tokens_of_mine.methods.Nope", "has no attribute 'Nope'"),
        ("tokens_of_mine.broken.Mine", "RuntimeError: not today"),
        ("tokens_of_mine.methods.Other", r"is no method; derive the class from .*\.Method"),
        ("tokens_of_mine.methods.frozen", "is no method"),
        ("tokens_of_mine.methods.Bare", "is no dataclass of its own; decorate it"),
        ("tokens_of_mine.methods.Required", "its option start needs a default"),
        ("..Mine", "cannot be imported"),
        (".Mine", "is not known"),
    ],
)
def test_a_path_to_no_method_is_refused(of_a_user, path, said):
    config, _ = settled("smoke", f"vapo.method.name={path}")
    with pytest.raises(ValueError, match=f"^vapo.method.name='{path}'.*{said}"):
        preflight.check_method(config)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("noisy_rollout", "noisy_rollout"),
        ("my_package.methods.LateTokens", "late_tokens"),
        ("my_package.KLPenalty2", "kl_penalty2"),
        ("my_package.late", "late"),
    ],
)
def test_metrics_of_a_class_are_under_its_own_name(name, short):
    assert short_name(name) == short


def test_vgpo_holds_the_released_scripts_values():
    config, settings = settled("vgpo")
    actor, method = config.actor_rollout_ref.actor, method_of(settings.method)
    assert (method.strength, method.tail_start, method.tail_fraction) == (0.3, 0.5, 0.2)
    assert (config.data.train_batch_size, actor.ppo_mini_batch_size) == (512, 128)
    assert (config.actor_rollout_ref.rollout.n, actor.optim.lr) == (8, 1e-6)
    assert (actor.clip_ratio_low, actor.clip_ratio_high, actor.use_kl_loss) == (0.2, 0.28, False)
    assert config.algorithm.filter_groups.enable and config.trainer.total_epochs == 2


@pytest.mark.parametrize("recipe", ["dapo", "vapo_released", "vgpo", "vppo"])
def test_a_recipe_that_drops_groups_does_not_do_so_without_end(recipe):
    filtering = settled(recipe)[0].algorithm.filter_groups
    assert filtering.enable and filtering.max_num_gen_batches in (10, 20)


def test_gspo_and_dr_grpo_are_verls_keys_alone():
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    gspo, settings = settled("gspo")
    assert settings.method.name == "none"
    assert get_policy_loss_fn(gspo.actor_rollout_ref.actor.policy_loss.loss_mode)
    assert gspo.actor_rollout_ref.actor.clip_ratio_low == 3e-4
    dr_grpo, settings = settled("dr_grpo")
    actor = dr_grpo.actor_rollout_ref.actor
    assert settings.method.name == "none" and not settings.advantage.normalize_by_std
    assert not dr_grpo.algorithm.norm_adv_by_std_in_grpo
    assert actor.loss_agg_mode == "seq-mean-token-sum-norm"
    assert actor.loss_scale_factor == dr_grpo.data.max_response_length


def test_noisy_rollout_holds_the_released_scripts_values():
    config, settings = settled("noisy_rollout")
    policy, method = config.actor_rollout_ref, method_of(settings.method)
    assert (method.noise_step, method.steepness, method.mid_step) == (500, 30, 40)
    assert (policy.rollout.n, method.noisy_fraction) == (12, 0.5)
    assert (policy.actor.optim.lr, policy.actor.use_kl_loss) == (1e-6, False)
    assert policy.actor.freeze_vision_tower
    assert (policy.actor.entropy_coeff, policy.actor.loss_agg_mode) == (1e-3, "token-mean")
    assert (config.data.train_batch_size, policy.actor.ppo_mini_batch_size) == (512, 128)


def test_papo_holds_the_released_scripts_values():
    config, settings = settled("papo")
    actor, method = config.actor_rollout_ref.actor, method_of(settings.method)
    assert (method.coef, method.entropy_coef, method.masked) == (0.02, 0.05, 0.6)
    assert (config.data.train_batch_size, actor.ppo_mini_batch_size) == (384, 128)
    assert (actor.use_kl_loss, actor.kl_loss_coef, actor.optim.lr) == (True, 0.01, 1e-6)
    assert (actor.clip_ratio_low, actor.clip_ratio_high) == (0.2, 0.3)
    assert config.actor_rollout_ref.rollout.n == 5


def test_vppo_holds_the_released_scripts_values():
    config, settings = settled("vppo")
    actor, method = config.actor_rollout_ref.actor, method_of(settings.method)
    assert (method.top_fraction, method.response_min, method.masked) == (0.4, 0.9, 0.5)
    assert method.entropy_coef == 0.06
    assert (config.data.train_batch_size, actor.ppo_mini_batch_size) == (384, 128)
    assert (actor.clip_ratio_low, actor.clip_ratio_high, actor.use_kl_loss) == (0.2, 0.28, False)
    assert (config.actor_rollout_ref.rollout.n, actor.optim.lr) == (8, 1e-6)


@pytest.mark.parametrize(
    "overrides",
    [
        ["vapo.method.name=papo"],
        ["vapo.method.name=noisy_rollout", "+vapo.method.options.noise_step=0"],
        ["vapo.method.name=noisy_rollout", "+vapo.method.options.noisy_fraction=0"],
    ],
)
def test_a_correction_is_for_responses_to_the_images_as_they_are(overrides):
    preflight.check_method(settled("vapo_tis", *overrides)[0])
