"""What every GPU recipe asks of the reference model and of the engine."""

import pytest
from omegaconf import OmegaConf

from tests.composing import compose_once
from vapo_verl.hydra_config import recipe_names

GPU_RECIPES = [name for name in recipe_names() if compose_once(name).trainer.device != "cpu"]


@pytest.fixture(params=GPU_RECIPES)
def policy(request):
    """`actor_rollout_ref` of one GPU recipe, resolved."""
    return composed(request.param).actor_rollout_ref


def composed(recipe):
    config = compose_once(recipe)
    OmegaConf.resolve(config)
    return config


def test_the_reference_is_held_in_bfloat16_and_the_actor_in_float32(policy):
    assert policy.ref.fsdp_config.model_dtype == "bf16"
    assert policy.actor.fsdp_config.model_dtype == "fp32"


@pytest.mark.parametrize("recipe", GPU_RECIPES)
def test_the_engine_makes_room_for_the_data_sets_images_and_for_no_video(recipe):
    config = composed(recipe)
    policy, engine = (
        config.actor_rollout_ref,
        config.actor_rollout_ref.rollout.engine_kwargs.vllm,
    )
    assert policy.rollout.get("limit_images") is None  # it would replace limit_mm_per_prompt
    assert OmegaConf.to_container(engine.limit_mm_per_prompt) == {"image": 8, "video": 0}
    assert OmegaConf.to_container(engine.mm_processor_kwargs) == {"max_pixels": pixels(config)}


def pixels(config):
    """Three papers' scripts have a limit of their own; that of the others is 4 megapixels."""
    limits = {"noisy_rollout": 1_000_000, "papo": 1_003_520, "vppo": 1_003_520}
    expected = limits.get(config.vapo.method.name, 4_194_304)
    assert config.data.max_pixels == expected
    return expected


def test_the_engines_image_limit_follows_that_of_the_data():
    config = compose_once("vapo", ["data.max_pixels=1003520"])
    engine = config.actor_rollout_ref.rollout.engine_kwargs.vllm
    assert engine.mm_processor_kwargs.max_pixels == 1_003_520
