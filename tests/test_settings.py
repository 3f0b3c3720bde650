"""Settings that no run can have: refused with key, value and fix, before anything starts."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tests.composing import compose_once
from vapo_verl.hydra_config import RECIPES, compose_base, compose_recipe, recipe_names
from vapo_verl.settings import (
    check_keys,
    check_recipe_package,
    check_settings,
    unreadable_override,
)


def smoke():
    """The recipe's config, which takes new keys."""
    config = compose_once("smoke")
    OmegaConf.set_struct(config, False)
    return config


LR = "actor_rollout_ref.actor.optim.lr"


ENVIRONMENT = "ray_kwargs.ray_init.runtime_env.env_vars"


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_passes(recipe):
    config = compose_once(recipe)
    check_settings(config)
    check_keys(config)
    check_recipe_package(config, recipe, [RECIPES.parent])


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("trainer.n_gpus_per_node", 0, "is out of range; give a whole number from 1"),
        ("trainer.n_gpus_per_node", -1, "is out of range"),
        ("trainer.n_gpus_per_node", 1.5, "is a float; give a whole number"),
        ("trainer.n_gpus_per_node", None, "is a NoneType; give a whole number"),
        ("trainer.n_gpus_per_node", True, "is a bool; give a whole number"),
        ("trainer.n_gpus_per_node", "8", "is a str; give a whole number"),
        ("trainer.nnodes", 0, "is out of range"),
        ("trainer.nnodes", 10**12, "is out of range"),
        ("trainer.total_training_steps", "abc", "is a str; give a whole number from 1, or null"),
        ("trainer.total_training_steps", 0, "is out of range"),
        ("trainer.total_training_steps", -5, "is out of range"),
        ("trainer.total_training_steps", 2.5, "is a float"),
        ("trainer.total_training_steps", [5], "is a ListConfig; give a whole number"),
        ("trainer.total_epochs", 0, "is out of range"),
        ("trainer.save_freq", "often", "is a str"),
        ("trainer.val_before_train", "no", "is a str; give true or false"),
        ("trainer.resume_mode", "always", "use one of auto, disable, resume_path"),
        ("trainer.device", "gpu", "use one of cpu, cuda, npu"),
        ("trainer.logger", 5, "give names as [tensorboard,wandb]"),
        ("trainer.logger", [None], "give names as [tensorboard,wandb]"),
        ("trainer.default_local_dir", None, "is no path"),
        ("trainer.default_local_dir", "", "is no path"),
        ("trainer.default_local_dir", 7, "is no path"),
        ("trainer.default_local_dir", "a\0b", "is no path"),
        ("data.train_batch_size", 0, "is out of range"),
        ("data.train_batch_size", 10**30, "is out of range"),
        pytest.param("data.train_batch_size", 10**5000, "is out of range", id="5001 digits"),
        ("data.dataloader_num_workers", -1, "is out of range"),
        ("data.train_files", 5, "give a file, or a list of files"),
        ("data.train_files", None, "give a file, or a list of files"),
        ("data.train_files", [], "give the path of a parquet file"),
        ("data.val_files", ["a.parquet", None], "None is no file"),
        ("data.seed", -1, "is out of range"),
        (LR, float("nan"), "give a finite number"),
        (LR, float("inf"), "give a finite number"),
        (LR, "small", "is a str; give a number"),
        ("actor_rollout_ref.rollout.gpu_memory_utilization", 90, "from 0.01 to 1"),
        ("actor_rollout_ref.rollout.gpu_memory_utilization", 0, "from 0.01 to 1"),
        ("actor_rollout_ref.rollout.temperature", 0, "give a number from 0.01"),
        ("actor_rollout_ref.rollout.top_p", 0, "from 0.001 to 1"),
        ("actor_rollout_ref.rollout.top_k", 0.5, "is a float; give a whole number"),
        ("actor_rollout_ref.rollout.val_kwargs.n", 0, "is out of range"),
        ("actor_rollout_ref.rollout.agent.num_workers", 0, "is out of range"),
        ("reward.num_workers", 0, "is out of range"),
        ("ray_kwargs.ray_init.num_cpus", "abc", "is a str"),
        ("actor_rollout_ref.actor.clip_ratio", -0.2, "is out of range"),
        ("actor_rollout_ref.actor.optim.betas", [0.9], "give 2 numbers"),
        ("actor_rollout_ref.actor.optim.betas", 0.9, "give a list"),
        ("actor_rollout_ref.actor.optim.lr_scheduler_type", "cosin", "use one of constant, cosine"),
        ("actor_rollout_ref.actor.loss_agg_mode", "token-maen", "use one of token-mean"),
        ("actor_rollout_ref.actor.kl_loss_type", "k4", "use one of kl"),
        ("actor_rollout_ref.actor.strategy", "fsdp3", "use one of fsdp, fsdp2"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode", "vanila", "use one of vanilla"),
        ("actor_rollout_ref.actor.checkpoint.save_contents", ["modle"], "use one of model"),
        ("actor_rollout_ref.actor.checkpoint.save_contents", ["extra"], "add model"),
        ("algorithm.adv_estimator", "vpao", "use one of vapo"),
        ("data.truncation", "none", "use one of error"),
        ("actor_rollout_ref.rollout.scheduling_policy", "prio", "use one of fcfs, priority"),
        ("actor_rollout_ref.rollout.dtype", "fp17", "use one of auto"),
        ("trainer.experiment_name", 5, "give a text"),
        ("vapo.reward.judge.cache_dir", 5, "is a int; give a text"),
        ("vapo.reward.judge", None, "is no group of settings"),
        ("vapo.reward", 5, "is no group of settings"),
        ("trainer.v1", [1], "is no group of settings"),
        ("algorithm", None, "leave it out, and set what is in it"),
        ("actor_rollout_ref.rollout.engine_kwargs.vllm", 5, "give settings"),
        ("data.apply_chat_template_kwargs", "x", "give settings"),
        ("data.max_prompt_length", {"a": 1}, "is a"),
        ("reward.custom_reward_function.path", 5, "is no path"),
        ("reward.custom_reward_function.path", ["a", "b"], "is no path"),
        ("actor_rollout_ref.model.lora_adapter_path", 5, "is no path"),
        ("trainer.resume_from_path", 5, "is no path"),
        ("actor_rollout_ref.rollout.temperature", float("inf"), "give a finite number"),
        ("actor_rollout_ref.rollout.val_kwargs.top_p", float("nan"), "give a finite number"),
        ("actor_rollout_ref.actor.clip_ratio", float("-inf"), "give a finite number"),
        ("actor_rollout_ref.actor.clip_ratio", "wide", "is a str; give a number"),
        ("actor_rollout_ref.actor.optim.betas", [0.9, float("nan")], "give a finite number"),
        ("algorithm.kl_ctrl.kl_coef", float("inf"), "give a finite number"),
        ("actor_rollout_ref.actor.ppo_epochs", "two", "is a str"),
        ("vapo.reward.late_emphasis", float("inf"), "give a finite number"),
        ("vapo.replay_poll_s", float("inf"), "give a finite number"),
        ("data.train_files", "${nope}", "Interpolation key 'nope' not found"),
    ],
)
def test_a_value_that_no_run_can_have_is_named_with_its_key(key, value, fix):
    config = smoke()
    OmegaConf.update(config, key, value, merge=False)
    with pytest.raises(ValueError, match=rf"{key.replace('.', '[.]')}\b") as refused:
        check_settings(config)
    assert fix in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("actor_rollout_ref.rollout.val_kwargs.temperature", 0),
        ("actor_rollout_ref.rollout.top_k", -1),
        ("algorithm.rollout_correction", None),
        ("reward.custom_reward_function", None),
        ("actor_rollout_ref.model.target_modules", ["q_proj"]),
        ("actor_rollout_ref.rollout.engine_kwargs.vllm", {"block_size": 16}),
        ("data.shuffle", 1),
        ("trainer.logger", "tensorboard"),
        ("actor_rollout_ref.actor.checkpoint.save_contents", ["model"]),
    ],
)
def test_values_beside_the_default_that_runs_have(key, value):
    config = smoke()
    OmegaConf.update(config, key, value, merge=False)
    check_settings(config)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("reward.reward_model.enable=true", "would replace the reward of VAPO"),
        ("reward.reward_manager.name=dapo", "without a reward manager"),
        ("+reward.reward_kwargs.overlong_buffer_cfg.enable=true", "without a reward manager"),
        ("reward_model.reward_manager=prime", "without a reward manager"),
        ("reward_model.enable=true", "nothing reads this older key"),
        ("actor_rollout_ref.rollout.multi_turn.enable=true", "one turn and no tools"),
        ("actor_rollout_ref.rollout.multi_turn.tool_config_path=t.yaml", "one turn and no tools"),
        ("actor_rollout_ref.rollout.do_sample=false", "set actor_rollout_ref.rollout.temperature"),
        ("trainer.default_hdfs_dir=hdfs://a/b", "nothing copies checkpoints there"),
        ("+actor_rollout_ref.rollout.repetition_penalty=1.05", "asks for 1.0 in every request"),
        ("data.image_key=image", "rename the column"),
        ("data.prompt_key=question", "rename the column"),
        ("data.reward_fn_key=source", "rename the column"),
        ("+trainer.remove_previous_ckpt_in_save=true", r"set trainer\.max_actor_ckpt_to_keep=1"),
        ("trainer.v1.sampler.custom_sampler.path=mine.py", "this package's replay buffer"),
    ],
)
def test_a_setting_that_would_have_no_effect_is_refused(override, words):
    key = override.lstrip("+").partition("=")[0].removesuffix(".overlong_buffer_cfg.enable")
    with pytest.raises(ValueError, match=words) as refused:
        check_settings(compose_once("smoke", [override]))
    assert str(refused.value).startswith(f"{key}=")


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "MINIO_SECRET"])
def test_a_secret_in_the_config_is_refused_without_its_value(name):
    config = compose_once("smoke", [f"+{ENVIRONMENT}.{name}=hidden"])
    with pytest.raises(ValueError, match=rf"{ENVIRONMENT}\.{name}: config\.yaml") as refused:
        check_settings(config)
    assert "hidden" not in str(refused.value)


def test_other_variables_of_the_environment_may_be_set():
    names = ("NCCL_DEBUG", "TOKENIZERS_PARALLELISM", "KEYS_OF_NCCL")
    check_settings(compose_once("smoke", [f"+{ENVIRONMENT}.{name}='1'" for name in names]))


@pytest.mark.parametrize(
    "override",
    [
        "reward_model.enable=false",
        "reward.reward_manager.name=null",
        "+trainer.remove_previous_ckpt_in_save=false",
        "+actor_rollout_ref.rollout.repetition_penalty=1.0",
    ],
)
def test_a_setting_without_effect_may_be_off(override):
    check_settings(compose_once("smoke", [override]))


def test_the_keys_that_verl_documents_reach_those_that_it_reads():
    actor = compose_once("vapo", ["actor_rollout_ref.actor.clip_ratio=0.3"]).actor_rollout_ref.actor
    assert (actor.clip_ratio_low, actor.clip_ratio_high) == (0.3, 0.3)
    actor = compose_once("vapo", ["actor_rollout_ref.actor.grad_clip=0.5"]).actor_rollout_ref.actor
    assert actor.optim.clip_grad == 0.5


LIBRARY = "actor_rollout_ref.model.external_lib"
OWN = f"; a name that a package of yours registers needs {LIBRARY}=PACKAGE"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package `mine_a` on the path."""
    (tmp_path / "mine_a" / "deep").mkdir(parents=True)
    (tmp_path / "mine_a" / "__init__.py").write_text("raise RuntimeError('it is found, not run')")
    (tmp_path / "mine_a" / "losses.py").touch()
    (tmp_path / "mine_a" / "deep" / "more.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("libraries", ["mine_a", "mine_a.losses", ["mine_a", "mine_a.deep.more"]])
def test_a_registered_name_of_an_own_library_is_not_refused(package, libraries):
    config = smoke()
    config.algorithm.adv_estimator = "mine"
    config.actor_rollout_ref.actor.policy_loss.loss_mode = "my_loss"
    config.actor_rollout_ref.model.external_lib = libraries
    check_settings(config)


@pytest.mark.parametrize(
    "key", ["algorithm.adv_estimator", "actor_rollout_ref.actor.policy_loss.loss_mode"]
)
def test_an_unknown_name_says_what_a_library_of_ones_own_needs(key):
    config = smoke()
    OmegaConf.update(config, key, "mine")
    with pytest.raises(ValueError, match="'mine' is not known; use one of ") as refused:
        check_settings(config)
    assert str(refused.value).endswith(OWN)
    assert "gae" not in str(refused.value), "preflight refuses it"


@pytest.mark.parametrize(
    ("libraries", "said"),
    [
        ("nope_pkg", "no package 'nope_pkg' can be imported here; correct it, or install"),
        (["mine_a", "nope_pkg"], "no package 'nope_pkg'"),
        ("mine_a.loses", "no module 'loses' is in 'mine_a'"),
        ("mine_a.losses.more", "no module 'more' is in 'mine_a.losses'"),
        ("mine_a,mine_b", r"several as \[first,second\]"),
        ("mine_a/losses.py", "is no name of a module"),
        ("", "'' is no module"),
        (5, "5 is no module"),
    ],
)
def test_a_library_that_cannot_be_imported_is_refused(package, libraries, said):
    config = smoke()
    config.actor_rollout_ref.model.external_lib = libraries
    with pytest.raises(ValueError, match=rf"^{LIBRARY}=.*{said}"):
        check_settings(config)


@pytest.mark.parametrize("name", ["", "global_step_", "absent/global_step_3", "step_3"])
def test_a_path_to_resume_from_is_a_checkpoint(tmp_path, name):
    (tmp_path / "step_3").mkdir()
    (tmp_path / "global_step_3").mkdir()
    config = smoke()
    config.trainer.resume_mode = "resume_path"
    config.trainer.resume_from_path = str(tmp_path / "global_step_3")
    check_settings(config)
    config.trainer.resume_from_path = str(tmp_path / name) if name else None
    with pytest.raises(ValueError, match=r"resume_from_path=.* give the path of a folder global"):
        check_settings(config)


def given(text: str):
    return OmegaConf.merge(smoke(), OmegaConf.create(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: {total_trainingsteps: 5}", r"trainer\.total_trainingsteps .* use trainer\."),
        ("trainer: {colour: red}", r"trainer\.colour .* no setting has this name; delete it"),
        ("model: {path: x}", r"^model is in the recipe.*\+model="),
        ("vapo: {anchor: {num_anchors: 7}}", r"vapo\.anchor .* use vapo\.anchors$"),
        ("vapo: {anchors: {number: 7}}", r"vapo\.anchors\.number "),
        (
            "actor_rollout_ref: {rollout: {temprature: 1.0}}",
            r"use .*\.rollout\.temp",
        ),
        ("data: {train_file: a}", r"data\.train_file .* use data\.train_files"),
    ],
)
def test_a_key_that_nothing_reads_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        check_keys(given(text))


@pytest.mark.parametrize(
    "text",
    [
        "actor_rollout_ref: {rollout: {engine_kwargs: {vllm: {any_name: 1}}}}",
        "actor_rollout_ref: {model: {override_config: {a: {b: 1}}}}",
        "ray_kwargs: {ray_init: {any_name: {b: 1}}}",
        "data: {apply_chat_template_kwargs: {enable_thinking: false}}",
    ],
)
def test_groups_of_another_library_take_any_key(text):
    check_keys(given(text))


def test_a_key_that_the_command_line_adds_is_meant():
    check_keys(given("trainer: {colour: red}"), ["trainer.colour"])


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("vapo: {anchors: {num_anchors: 7}}\n", True),
        ("defaults: [vapo]\n# @package _global_\n", True),
        ("# mine\n\n# @package _global_\ndefaults: [vapo]\n", False),
        ("#@package:_global_\n", False),
    ],
)
def test_a_recipe_without_its_package_line_is_named_with_the_line(tmp_path, text, missing):
    (tmp_path / "recipe").mkdir()
    file = tmp_path / "recipe" / "mine.yaml"
    file.write_text(text)
    config = given("recipe: {vapo: {anchors: {num_anchors: 7}}}")
    with pytest.raises(ValueError, match="# @package _global_") as refused:
        check_recipe_package(config, "mine", [tmp_path])
    assert (str(file) in str(refused.value)) == missing
    assert "vapo.anchors.num_anchors" in str(refused.value)


VALUES = [
    *("/tmp/ä.parquet", "日本", "a=b", "f(x)", "a(b", "a)b", "a,b(c", "it's", 'say "hi"', "a&b"),
    *("{x", "a;b", "#x", "~/x", "a!", "[1].parquet", 'a"\\"b', "ä\\", 'ä\\"b', "a|b<c>d", "é\nf"),
    *("'", '"', "ä${oc.env:HOME}", "a?(b)", "(a), (b)"),
]


@pytest.mark.parametrize("value", VALUES)
def test_the_quoted_form_is_read_as_that_value(value):
    problem = unreadable_override(f"data.train_files={value}")
    assert problem is not None and problem.startswith(f"the argument data.train_files={value} ")
    forms = shlex.split(problem.partition("Write it so:")[2])
    assert all(unreadable_override(form) is None for form in forms)
    assert OverridesParser.create().parse_override(forms[-1]).value() == value


def test_a_list_is_quoted_item_by_item_and_numbers_stay_numbers():
    problem = unreadable_override("key=[ä.parquet, b(1), 3, null]")
    (form,) = shlex.split(problem.partition("Write it so:")[2])
    assert OverridesParser.create().parse_override(form).value() == ["ä.parquet", "b(1)", 3, None]


@pytest.mark.parametrize("value", ["a,b", "choice(1,2)", "range(1,4)"])
def test_values_of_several_runs_are_good_with_m_alone(value):
    assert "which need -m" in unreadable_override(f"vapo.seed={value}")
    assert unreadable_override(f"vapo.seed={value}", several_runs=True) is None


@pytest.mark.parametrize(
    "argument",
    [
        "+recipe=smoke",
        "a.b=1",
        "a=[1,2]",
        "a={b: 1}",
        "~a.b",
        "+a.b='x y'",
        "a=",
        "a=x/y-z.w",
        "a=b c",
    ],
)
def test_what_hydra_reads_is_left_alone(argument):
    assert unreadable_override(argument) is None


def test_a_word_is_no_setting():
    assert unreadable_override("smoke") == "smoke is no setting; give key=value"


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.seed=3", "trainer.logger=[a,b]", "trainer.project_name='it is: 1e-3'"],
        ["+data.gen_batch_size=5", "++vapo.seed=7", "~data.seed"],
        ["+actor_rollout_ref.rollout.engine_kwargs.vllm.mm_processor_kwargs={max_pixels: 60000}"],
    ],
)
def test_the_recipes_of_these_tests_are_those_that_hydra_composes(overrides):
    config, composed = compose_once("smoke", overrides), compose_recipe("smoke", overrides)
    assert OmegaConf.to_yaml(config) == OmegaConf.to_yaml(composed)
    assert OmegaConf.is_struct(config)


def test_the_base_config_can_be_composed_within_another_hydra():
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(RECIPES.parent), version_base=None):
        outer = GlobalHydra.instance().hydra
        assert "trainer" in compose_base()
        assert GlobalHydra.instance().hydra is outer
