"""Every recipe composes, passes this package's checks and veRL's own, for its size of machine."""

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from tests.composing import compose_once
from vapo_verl import preflight
from vapo_verl.config import value_at, vapo_config
from vapo_verl.hydra_config import recipe_names
from vapo_verl.launch import export_attention

VARIANTS = [
    "vapo_attention",
    "vapo_lora",
    "vapo_soft",
    "vapo_relaxed",
    "vapo_decoupled",
    "vapo_tis",
]
SWEEPS = {
    "sweep_num_anchors": ("vapo.anchors.num_anchors", "vapo_k20"),
    "sweep_late_emphasis": ("vapo.reward.late_emphasis", "vapo_beta1.5"),
    "sweep_perception_weight": ("vapo.reward.perception_weight", "vapo_gamma0.1"),
    "sweep_placement": ("vapo.anchors.placement", "vapo_random"),
}
PAPERS = ["vapo", "vapo_3b", "vapo_paper", "vapo_released", "grpo", "dapo"]
GPUS_PER_NODE = {"vapo_3b_1gpu": 1, "vapo_7b_4gpu": 4, "vapo_async": 4}
"""Of the recipes for smaller machines, and of the actor where engines have the other GPUs of a
node; the others are for nodes of 8."""
METHODS = ["vgpo", "noisy_rollout", "papo", "vppo", "gspo", "dr_grpo"]
"""Of other papers, see docs/methods.md."""
GPU_RECIPES = [*PAPERS, *VARIANTS, *METHODS, *GPUS_PER_NODE]


def test_the_recipes_are_those_their_readme_lists():
    assert recipe_names() == sorted(
        ["smoke", "smoke_async", "smoke_gpu", "smoke_lora", "study", *GPU_RECIPES, *SWEEPS]
    )
    readme = Path(__file__).parents[2].joinpath("recipes", "README.md").read_text()
    for recipe in recipe_names():
        assert f"`{recipe}`" in readme, f"recipes/README.md does not tell what {recipe} is"


def settled(recipe, *overrides):
    config = compose_once(recipe, overrides)
    OmegaConf.resolve(config)
    return config, vapo_config(OmegaConf.to_container(config.vapo))


@pytest.mark.parametrize("recipe", recipe_names())
def test_composes_and_passes_our_checks(recipe, monkeypatch):
    monkeypatch.setattr(preflight, "lacks_flash_attention", lambda _: False)
    monkeypatch.setattr(preflight, "lacks_cupy", lambda: False)
    config, _ = settled(recipe)
    for check in preflight.CHECKS:
        check.run(config)
    assert config.trainer.experiment_name == SWEEPS.get(recipe, ("", recipe))[1]


@pytest.mark.parametrize("num_nodes", [1, 2])
@pytest.mark.parametrize("recipe", GPU_RECIPES)
def test_passes_verls_validation_on_one_and_two_of_its_nodes(recipe, num_nodes):
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    config, _ = settled(recipe, f"trainer.nnodes={num_nodes}")
    assert config.trainer.n_gpus_per_node == GPUS_PER_NODE.get(recipe, 8)
    preflight.check_batches(config)
    validate_config(config, need_reference_policy(config), need_critic(config))


@pytest.mark.parametrize(("num_nodes", "processes"), [(1, 8), (4, 32), (None, 8), (0, 8)])
def test_every_node_adds_agent_loops_and_storage(num_nodes, processes):
    nodes = "null" if num_nodes is None else num_nodes  # refused later, by its own key
    config = compose_once("vapo", [f"trainer.nnodes={nodes}"])
    assert config.actor_rollout_ref.rollout.agent.num_workers == processes
    storage = config.transfer_queue.backend.SimpleStorage
    assert storage.num_data_storage_units == processes


def test_smoke_gpu_fits_one_gpu_with_and_without_flash_attn(monkeypatch):
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    config, settings = settled("smoke_gpu")
    monkeypatch.setattr(preflight, "lacks_flash_attention", lambda _: True)
    preflight.check_attention_kernel(config)
    config.actor_rollout_ref.model.use_remove_padding = False
    preflight.check_padding(config)
    validate_config(config, need_reference_policy(config), need_critic(config))
    assert (config.trainer.n_gpus_per_node, config.trainer.nnodes) == (1, 1)
    assert (settings.anchors.num_anchors, settings.attention.enabled) == (8, True)
    assert config.actor_rollout_ref.rollout.free_cache_engine  # sleep mode
    assert config.trainer.logger == ["tensorboard"]


def test_smoke_gpu_takes_data_and_model_from_one_folder(monkeypatch):
    monkeypatch.setenv("VAPO_DATA_DIR", "/somewhere")
    config, _ = settled("smoke_gpu")
    assert config.data.train_files == "/somewhere/digits/train.parquet"
    assert config.actor_rollout_ref.model.path == "/somewhere/models/random_100m"


def test_vapo_paper_holds_the_papers_table():
    """Section 5 and appendix A.7 of arXiv 2509.25848."""
    config, settings = settled("vapo_paper")
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert config.actor_rollout_ref.model.path == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert (settings.anchors.num_anchors, settings.anchors.placement) == (20, "random")
    assert (settings.reward.late_emphasis, settings.reward.perception_weight) == (1.5, 0.1)
    assert (settings.reward.accuracy_weight, settings.reward.format_weight) == (1.0, 1.0)
    assert (actor.optim.lr, config.trainer.total_epochs) == (5e-6, 2)
    assert (rollout.n, rollout.temperature) == (5, 1.0)
    assert (actor.clip_ratio_low, actor.clip_ratio_high) == (0.2, 0.2)
    assert (actor.use_kl_loss, actor.kl_loss_coef) == (True, 1e-2)
    assert settings.advantage.attention_coef == 0


def test_vapo_released_holds_the_published_scripts_values():
    config, settings = settled("vapo_released")
    actor, reward = config.actor_rollout_ref.actor, settings.reward
    assert (reward.accuracy_weight, reward.format_weight, reward.perception_weight) == (
        0.8,
        0.1,
        0.1,
    )
    assert reward.chance_corrected
    assert (config.data.train_batch_size, actor.ppo_mini_batch_size) == (384, 128)
    assert (config.data.max_prompt_length, config.data.max_response_length) == (4096, 2048)
    assert (config.data.min_pixels, config.data.max_pixels) == (262_144, 4_194_304)
    assert (actor.clip_ratio_low, actor.clip_ratio_high, actor.use_kl_loss) == (0.2, 0.28, False)
    assert actor.loss_agg_mode == "token-mean"
    # Groups of equal accuracy stay where perception differs.
    assert config.algorithm.filter_groups.enable
    assert config.algorithm.filter_groups.metric == "reward"
    assert (config.trainer.total_epochs, config.actor_rollout_ref.rollout.top_p) == (5, 0.99)


def differing(one, other, path=""):
    """Dotted keys at which two plain configs differ."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [path] if one != other else []
    keys = sorted({*one, *other})
    return [d for k in keys for d in differing(one.get(k), other.get(k), f"{path}.{k}".lstrip("."))]


def test_grpo_is_vapo_without_its_reward_and_nothing_else():
    grpo, vapo = (OmegaConf.to_container(settled(name)[0]) for name in ("grpo", "vapo"))
    names = {"trainer.experiment_name", "trainer.default_local_dir"}
    traced = {key for key in differing(grpo, vapo) if key.endswith("experiment_name")}
    assert set(differing(grpo, vapo)) - names - traced == {
        "vapo.anchors.num_anchors",
        "vapo.reward.perception_source",
    }


def test_vapo_7b_4gpu_is_vapo_on_fewer_gpus():
    smaller, vapo = (OmegaConf.to_container(settled(name)[0]) for name in ("vapo_7b_4gpu", "vapo"))
    changed = {key for key in differing(smaller, vapo) if not key.endswith("experiment_name")}
    assert {key.rpartition(".")[2] for key in changed} == {
        "default_local_dir",
        "gpu_memory_utilization",
        "n_gpus_per_node",
    }


def test_vapo_3b_1gpu_trains_all_parameters_with_their_state_on_the_host():
    config, settings = settled("vapo_3b_1gpu")
    policy = config.actor_rollout_ref
    assert policy.model.path == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert (policy.model.lora_rank, policy.actor.strategy) == (0, "fsdp2")
    assert policy.actor.fsdp_config.offload_policy
    assert config.data.train_batch_size == 3 * policy.actor.ppo_mini_batch_size
    assert settings.anchors.num_anchors == 20


@pytest.mark.parametrize(("recipe", "key"), [(name, key) for name, (key, _) in SWEEPS.items()])
def test_a_sweep_is_one_multirun_with_a_folder_for_each_value(run_module, recipe, key):
    shown = run_module("vapo_verl.main", f"+recipe={recipe}", "--cfg", "hydra", check=True)
    swept = yaml.safe_load(shown.stdout)["hydra"]
    assert swept["mode"] == "MULTIRUN"
    values = swept["sweeper"]["params"][key].split(",")
    assert len(values) == len(set(values)) >= 4
    folders = {settled(recipe, f"{key}={value}")[0].trainer.default_local_dir for value in values}
    assert len(folders) == len(values)


def test_the_variants_differ_from_vapo_in_what_they_say():
    vapo = OmegaConf.to_container(settled("vapo")[0])["vapo"]
    changed = {
        "vapo_soft": {"reward.soft": True},
        "vapo_relaxed": {"anchors.gate": "relaxed"},
        "vapo_decoupled": {
            "advantage.normalization": "decoupled",
            "reward.perception_weight": 1.0,  # the study's
        },
    }
    for recipe, values in changed.items():
        other = OmegaConf.to_container(settled(recipe)[0])["vapo"]
        assert {*differing(other, vapo)} == {*values}
        assert {key: value_at(other, key) for key in values} == values


def test_vapo_tis_is_vapo_with_weights_of_tokens():
    tis, vapo = (OmegaConf.to_container(settled(name)[0]) for name in ("vapo_tis", "vapo"))
    changed = {key for key in differing(tis, vapo) if not key.endswith("experiment_name")}
    assert changed - {"trainer.default_local_dir"} == {"algorithm.rollout_correction.rollout_is"}
    assert tis["algorithm"]["rollout_correction"]["rollout_is"] == "token"


def test_vapo_attention_is_vapo_with_credit_that_follows_the_image():
    config, settings = settled("vapo_attention")
    assert settings.attention.enabled
    assert settings.advantage.attention_coef == 0.3
    export_attention(config)
    engine = config.actor_rollout_ref.rollout.engine_kwargs.vllm
    assert engine.worker_cls.endswith("VisualAttentionWorker")
    assert engine.additional_config.visual_attention.layers == "spread"


def test_dapo_clips_higher_and_samples_dynamically():
    config, _ = settled("dapo")
    actor = config.actor_rollout_ref.actor
    assert actor.clip_ratio_high > actor.clip_ratio_low
    assert config.algorithm.filter_groups.enable
    assert config.algorithm.filter_groups.metric == "acc"
    assert actor.loss_agg_mode == "token-mean"
