"""Sizes of models and checkpoints by hand: a model of 1000 parameters, and the recipes' own."""

import json

import pytest

from vapo_verl.digits.model import model_dir
from vapo_verl.doctor.disk import checkpoint_bytes, num_checkpoints
from vapo_verl.doctor.model_size import (
    KNOWN_SHAPES,
    model_shape,
    model_size,
    shape_from_folder,
    vision_tokens,
)


@pytest.fixture
def model(tmp_path):
    """1000 parameters in bfloat16, patches of 16 that are merged by 2."""
    tensor = {"dtype": "BF16", "shape": [10, 100], "data_offsets": [0, 2000]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": tensor}).encode()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    processor = {"patch_size": 16, "merge_size": 2, "size": {"longest_edge": 10240}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_parameters_are_counted_in_the_headers(config, model):
    size = model_size(config(f"actor_rollout_ref.model.path={model}"))
    assert size is not None
    assert size.num_parameters == 1000
    cut = vision_tokens(model)
    assert (cut.pixels_per_token, cut.max_pixels) == (32 * 32, 10240)


def test_a_hub_name_is_sized_by_its_published_shape_or_by_its_number(config, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    size = model_size(config(recipe="vapo_3b"))
    assert size is not None
    assert size.num_parameters == 3_754_622_976
    named = config("actor_rollout_ref.model.path=mine/Some-VL-32B", recipe="vapo")
    size = model_size(named)
    assert size is not None
    assert size.num_parameters == pytest.approx(32e9 * 1.2)
    assert model_shape(named) == KNOWN_SHAPES["Qwen/Qwen2.5-VL-32B-Instruct"]  # the nearest one
    unknown = config("actor_rollout_ref.model.path=some/model", recipe="vapo")
    assert model_size(unknown) is None
    assert model_shape(unknown) is None


def sizes_of(shape):
    """The halves of a transformers config with a shape's sizes."""
    text = {
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "intermediate_size": shape.intermediate_size,
        "vocab_size": shape.vocab_size,
    }
    vision = {
        "hidden_size": shape.vision_hidden_size,
        "depth": shape.vision_depth,
        "intermediate_size": shape.vision_intermediate_size,
        "out_hidden_size": shape.hidden_size,
    }
    return text, vision


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3_754_622_976),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656),
        ("Qwen/Qwen2.5-VL-32B-Instruct", 33_452_718_336),
        ("Qwen/Qwen2.5-VL-72B-Instruct", 73_410_777_344),
    ],
)
def test_a_shape_counts_every_parameter_of_the_model(name, num_parameters):
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    shape = KNOWN_SHAPES[name]
    text, vision = sizes_of(shape)
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=shape.tie_word_embeddings,
    )
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.tie_weights()
    layer = model.model.language_model.layers[0]
    assert sum(p.numel() for p in model.parameters()) == shape.num_parameters == num_parameters
    assert sum(p.numel() for p in layer.parameters()) == shape.layer_parameters


def test_the_shape_of_a_folder_is_its_config_jsons(config):
    shape = shape_from_folder(model_dir())
    size = model_size(config())
    assert shape is not None and size is not None
    assert (shape.hidden_size, shape.vision_depth, shape.tie_word_embeddings) == (128, 2, True)
    assert shape.num_parameters == size.num_parameters  # by its safetensors file


def test_a_checkpoint_is_weights_and_two_moments(config):
    assert checkpoint_bytes(config(), 1000) == 1000 * 4 * 3
    contents = "actor_rollout_ref.actor.checkpoint.save_contents=[model]"
    assert checkpoint_bytes(config(contents), 1000) == 1000 * 4
    whole = "actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra,hf_model]"
    assert checkpoint_bytes(config(whole), 1000) == 1000 * 4 * (3 + 1)
    hybrid = ["trainer.n_gpus_per_node=4", "actor_rollout_ref.actor.fsdp_config.fsdp_size=2"]
    assert checkpoint_bytes(config(*hybrid), 1000) == 2 * 1000 * 4 * 3  # every rank writes a shard


BEST = "vapo.keep_best=val/acc"


def test_heads_and_experts_of_a_folder_are_read(tmp_path):
    """Qwen3-VL: heads are not hidden_size / number wide, and a layer may have many MLPs."""
    text = {
        **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "head_dim": 16},
        **{"num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 100},
        **{"num_experts": 4, "moe_intermediate_size": 32},
    }
    config = {"text_config": text, "vision_config": {"hidden_size": 32}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = shape_from_folder(tmp_path)
    assert (shape.query_size, shape.key_value_size) == (8 * 16, 2 * 16)
    assert shape.linear_layers()["self_attn.o_proj"] == (64, 128)
    attention = 2 * 128 * 64 + 128 + 2 * (32 * 64 + 32)
    assert shape.layer_parameters == attention + 3 * 4 * 32 * 64 + 4 * 64 + 2 * 64


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ([], 2),  # 6 steps, saved every 3
        (["trainer.total_training_steps=7"], 3),
        (["trainer.max_actor_ckpt_to_keep=1"], 2),
        (["trainer.max_actor_ckpt_to_keep=2", "trainer.total_training_steps=30", BEST], 3),
        (["trainer.save_freq=-1"], 0),
        (["trainer.total_training_steps=null"], None),
    ],
)
def test_checkpoints_on_disk_at_once(config, changes, number):
    assert num_checkpoints(config(*changes)) == number
