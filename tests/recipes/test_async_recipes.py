"""The asynchronous trainers compose for their machines, and senseless combinations are refused."""

import pytest
from omegaconf import OmegaConf

from tests.composing import compose_once
from vapo_verl import preflight

COLOCATED = "trainer.v1.trainer_mode=vapo_colocate_async"
SEPARATE = "trainer.v1.trainer_mode=vapo_separate_async"
ROLLOUT = "actor_rollout_ref.rollout"
SAMPLER, WARM_UP = "trainer.v1.sampler", "trainer.v1.colocate_async.num_warmup_batches"


def composed(recipe, *overrides):
    config = compose_once(recipe, list(overrides))
    OmegaConf.resolve(config)
    return config


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    monkeypatch.setattr(preflight, "lacks_cupy", lambda: False)


@pytest.mark.parametrize("num_nodes", [1, 2])
@pytest.mark.parametrize(("recipe", "overrides"), [("vapo_async", ()), ("vapo", (COLOCATED,))])
def test_they_pass_our_checks_and_verls_on_one_and_two_nodes(recipe, overrides, num_nodes):
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    config = composed(recipe, *overrides, f"trainer.nnodes={num_nodes}")
    preflight.check_trainer_mode(config)
    preflight.check_batches(config)
    validate_config(config, need_reference_policy(config), need_critic(config))
    assert preflight.ranks_of(config) + preflight.engine_gpus(config) == 8 * num_nodes


@pytest.mark.parametrize(
    ("recipe", "overrides", "says"),
    [
        ("vapo", ["trainer.v1.trainer_mode=sync"], "not a trainer of this package"),
        ("vapo", [SEPARATE], "give rollout GPUs of its own"),
        ("vapo_async", [f"{ROLLOUT}.n_gpus_per_node=0"], "give rollout GPUs of its own"),
        ("vapo_async", [f"{ROLLOUT}.tensor_model_parallel_size=3"], "4 GPUs do not make engines"),
        ("vapo_async", ["trainer.v1.trainer_mode=vapo"], "hybrid_engine=False"),
        ("vapo_async", [COLOCATED, "actor_rollout_ref.hybrid_engine=true"], "nnodes=1"),
        ("vapo_async", ["actor_rollout_ref.hybrid_engine=true"], "set both to false"),
        (
            "vapo_async",
            ["trainer.v1.separate_async.hybrid_rollout.enable_switch=true"],
            "set both to false",
        ),
        ("vapo_async", ["data.train_batch_size=256"], "must be .* = 384"),
        ("vapo_async", [f"{ROLLOUT}.checkpoint_engine.backend=naive"], "set backend to nccl"),
        (
            "vapo_async",
            [f"{ROLLOUT}.checkpoint_engine.custom_backend_module=null"],
            "custom_backend_module=vapo_verl.rollout.weight_sync",
        ),
        (
            "vapo_async",
            ["actor_rollout_ref.actor.fsdp_config.param_offload=true"],
            "parameter_sync_step=1",
        ),
        (
            "vapo_async",
            ["actor_rollout_ref.actor.fsdp_config.reshard_after_forward=false"],
            "reshard_after_forward=False .*parameter_sync_step=1",
        ),
        (
            "vapo_async",
            ["actor_rollout_ref.actor.strategy=fsdp"],
            "strategy=fsdp .*set fsdp2, or .*parameter_sync_step=1",
        ),
        ("vapo_async", [f"{SAMPLER}.max_off_policy_threshold=0"], "threshold=0 .* 1 or more"),
        ("vapo_async", [f"{SAMPLER}.max_off_policy_threshold=2.5"], "threshold=2.5"),
        ("vapo", [COLOCATED, f"{SAMPLER}.max_off_policy_strategy=skip"], "use drop or wait"),
        *(
            ("vapo", [COLOCATED, f"{WARM_UP}={value}"], f"{WARM_UP}={value} .* give 0 or more")
            for value in ("-1", "nan", "one")
        ),
        ("vapo_async", ["actor_rollout_ref.model.lora_rank=8"], "lora.merge=true"),
        ("smoke_async", ["ray_kwargs.ray_init.num_gpus=1"], "need 2"),
        ("vapo", [COLOCATED, "vapo.rollout.restart_servers=true"], "restart_servers"),
    ],
)
def test_what_cannot_work_is_refused_with_the_fix(recipe, overrides, says):
    with pytest.raises(ValueError, match=says):
        preflight.check_trainer_mode(composed(recipe, *overrides))


def test_slots_of_this_machine_say_nothing_about_several_nodes():
    preflight.check_trainer_mode(composed("smoke_async", "trainer.nnodes=2"))


def test_trainers_of_saved_rollouts_are_ours_too(tmp_path):
    debug = f"vapo.debug.save_rollouts={tmp_path}"
    preflight.check_trainer_mode(composed("vapo", debug, "trainer.v1.trainer_mode=vapo_saving"))


def test_weights_by_nccl_need_cupy(monkeypatch):
    monkeypatch.setattr(preflight, "lacks_cupy", lambda: True)
    with pytest.raises(ValueError, match="pip install cupy"):
        preflight.check_trainer_mode(composed("vapo_async"))
    preflight.check_trainer_mode(composed("vapo_async", f"{ROLLOUT}.checkpoint_engine.backend=zmq"))


@pytest.mark.parametrize(
    "setting",
    ["fsdp_config.param_offload=true", "fsdp_config.reshard_after_forward=false", "strategy=fsdp"],
)
def test_off_load_is_allowed_where_no_copy_of_the_weights_is_restored(setting):
    offload = f"actor_rollout_ref.actor.{setting}"
    bypass = "+algorithm.rollout_correction.bypass_mode=true"
    once = ["trainer.v1.separate_async.parameter_sync_step=1", "data.train_batch_size=128"]
    preflight.check_trainer_mode(composed("vapo_async", offload, *once))
    preflight.check_trainer_mode(composed("vapo_async", offload, bypass.lstrip("+")))


@pytest.mark.parametrize(
    "override",
    [
        f"{SAMPLER}.max_off_policy_threshold=null",
        f"{SAMPLER}.max_off_policy_strategy=wait",
        f"{WARM_UP}=0.5",
        f"{WARM_UP}=0",
    ],
)
def test_other_ages_and_warm_ups_are_accepted(override):
    preflight.check_trainer_mode(composed("vapo", COLOCATED, override))


def test_smoke_async_is_smoke_on_a_pool_of_its_own():
    config, smoke = composed("smoke_async"), composed("smoke")
    assert config.data == smoke.data
    assert config.vapo.anchors == smoke.vapo.anchors
    preflight.check_trainer_mode(config)
