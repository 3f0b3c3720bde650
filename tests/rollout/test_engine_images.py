"""What vLLM makes room for, and that it takes an image as the agent loop has resized it."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from qwen_vl_utils import fetch_image
from verl.workers.rollout.vllm_rollout import vllm_async_server

from tests.composing import compose_once
from vapo_verl.digits.model import model_dir
from vapo_verl.rollout.engine_args import refuse_lifted_limit, settle_image_limit

MIN_PIXELS, MAX_PIXELS = 3136, 40_000
"""Of the data; the packaged model's processor takes 784 to 50176."""


@pytest.fixture
def engine_args(server_of):
    """vLLM's arguments for a config, as veRL's server makes them."""

    def build(recipe, *overrides):
        server = server_of(recipe, *overrides)
        return vllm_async_server.AsyncEngineArgs.from_cli_args(server.args)

    return build


@pytest.mark.parametrize("recipe", ["vapo", "vapo_attention"])
def test_the_recipes_limits_reach_the_engine(engine_args, recipe):
    args = engine_args(recipe, f"data.max_pixels={MAX_PIXELS}")
    assert args.limit_mm_per_prompt == {"image": 8, "video": 0}
    assert args.mm_processor_kwargs == {"max_pixels": MAX_PIXELS}
    assert ("visual_attention" in (args.additional_config or {})) == (recipe == "vapo_attention")


def test_without_a_limit_of_the_data_the_engine_has_the_models_own(engine_args):
    assert engine_args("vapo", "data.max_pixels=null").mm_processor_kwargs is None


def test_the_models_own_limit_is_not_lifted(engine_args):
    assert engine_args("vapo").mm_processor_kwargs == {"max_pixels": 50_176}  # the data: 4194304


def test_the_own_limit_of_a_hub_name_in_the_cache_is_not_lifted(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--owner--model" / "snapshots" / "0"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(model_dir())
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    config = compose_once("vapo", ["actor_rollout_ref.model.path=owner/model"])
    settle_image_limit(config)
    assert config.actor_rollout_ref.rollout.engine_kwargs.vllm.mm_processor_kwargs == {
        "max_pixels": 50_176
    }


def test_a_limit_above_that_of_a_processor_from_the_hub_is_refused_when_it_is_loaded(processor):
    config = compose_once("vapo", ["actor_rollout_ref.model.path=owner/absent"])
    settle_image_limit(config)
    own = processor.image_processor.size["longest_edge"]
    with pytest.raises(ValueError, match=r"max_pixels=4194304 .*set data\.max_pixels=50176"):
        refuse_lifted_limit(config, own)
    config.data.max_pixels = 50_176
    config.actor_rollout_ref.rollout.engine_kwargs.vllm.mm_processor_kwargs.max_pixels = 50_176
    refuse_lifted_limit(config, own)


def test_limit_images_would_replace_them(engine_args):
    """Why the recipes do not set it."""
    args = engine_args("vapo", "+actor_rollout_ref.rollout.limit_images=4")
    assert args.limit_mm_per_prompt == {"image": 4}


@pytest.fixture(scope="module")
def engine_images():
    """vLLM's view of the packaged model's images, with and without the limit."""
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY

    def info(**options):
        model = ModelConfig(
            model=str(model_dir()),
            dtype="float32",
            max_model_len=336,
            limit_mm_per_prompt={"image": 8, "video": 0},
            **options,
        )
        return MULTIMODAL_REGISTRY.create_processor(model).info

    return {
        "limited": info(mm_processor_kwargs={"max_pixels": MAX_PIXELS}),
        "own": info(),
    }


def test_the_limit_bounds_what_the_engine_makes_room_for(engine_images):
    pixels = {}
    for name, info in engine_images.items():
        size = info.get_image_size_with_most_features()
        pixels[name] = size.width * size.height
    assert pixels["limited"] <= MAX_PIXELS < pixels["own"] == 50_176


def test_no_room_is_made_for_video(engine_images):
    for info in engine_images.values():
        assert dict(info.allowed_mm_limits) == {"image": 8, "video": 0}


side = st.integers(1, 900)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(width=side, height=side)
def test_the_engine_counts_the_tokens_that_the_agent_loop_counted(
    engine_images, processor, width, height
):
    if max(width, height) > 200 * min(width, height):
        return
    image = Image.new("RGB", (width, height))
    limits = {"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}
    resized = fetch_image({"image": image, **limits}, image_patch_size=14)
    images = processor.image_processor
    patches = images.get_number_of_image_patches(resized.height, resized.width, {})
    expected = patches // images.merge_size**2
    info = engine_images["limited"]
    told = info.get_num_image_tokens(
        image_width=resized.width,
        image_height=resized.height,
        image_processor=info.get_image_processor(),
        mm_kwargs={},
    )
    media = {"text": "<|image_pad|>", "images": [resized]}
    made = info.ctx.call_hf_processor(info.get_hf_processor(), media, {})
    grid = made["image_grid_thw"][0].prod().item()
    assert told == grid // images.merge_size**2 == expected
