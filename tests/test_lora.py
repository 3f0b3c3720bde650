"""LoRA settings: what they select, as peft does, and which of them no run can have."""

import copy
import json
import re
from functools import cache
from typing import get_args

import pytest
import torch
import yaml
from omegaconf import OmegaConf, open_dict
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from vapo_verl import lora
from vapo_verl.launch import composed
from vapo_verl.lora import (
    DECODER_LINEAR,
    VISION_LAYERS,
    Lora,
    check_lora,
    lora_of,
    refuse_quantized,
)
from vapo_verl.rollout.model_families import RUNNING

MODEL, ROLLOUT = "actor_rollout_ref.model", "actor_rollout_ref.rollout"


@cache
def recipe_config(recipe):
    return composed(recipe, [])


def config_with(*overrides, recipe="vapo_lora"):
    """The recipe with `key=value`s, composed once: texts as YAML, keys may be new."""
    config = copy.deepcopy(recipe_config(recipe))
    for override in overrides:
        key, _, value = override.partition("=")
        with open_dict(config):
            OmegaConf.update(config, key, yaml.safe_load(value), merge=False, force_add=True)
    return config


def check(*overrides, recipe="vapo_lora"):
    check_lora(config_with(*overrides, recipe=recipe))


def refused(*overrides, recipe="vapo_lora"):
    with pytest.raises(ValueError) as error:
        check(*overrides, recipe=recipe)
    return str(error.value)


@pytest.fixture(scope="module", params=sorted(RUNNING))
def model(request):
    """One of two layers and two vision blocks, without memory."""
    config = CONFIG_MAPPING[request.param]()
    config.text_config.num_hidden_layers = config.vision_config.depth = 2
    if hasattr(config.vision_config, "deepstack_visual_indexes"):
        config.vision_config.deepstack_visual_indexes = [0, 1]
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def linear_names(model):
    return {name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}


@pytest.mark.parametrize(
    ("targets", "excluded"),
    [
        (("q_proj", "v_proj"), ()),
        (("gate_proj", "up_proj", "down_proj"), ()),
        (("proj",), ("patch_embed.proj",)),
        (("proj", "qkv", "lm_head"), ("visual",)),
        (("model.language_model.layers.0.self_attn.q_proj", "o_proj"), ()),
        (r".*language_model.*\.(q|k|v)_proj", ()),
        (".*", ".*visual.*"),
        (".*proj", ("q_proj", "down_proj")),
    ],
)
def test_names_are_selected_as_peft_does(model, targets, excluded):
    selected = Lora(rank=4, alpha=4, targets=targets, excluded=excluded)
    config = LoraConfig(target_modules=_plain(targets), exclude_modules=_plain(excluded) or None)
    names = [name for name, _ in model.named_modules() if name]
    by_peft = {name for name in names if check_target_module_exists(config, name)}
    assert {name for name in names if selected.adapts(name)} == by_peft


def _plain(names):
    return names if isinstance(names, str) else list(names)


def test_all_linear_adapts_the_vision_tower_unless_it_is_excluded(model):
    everything = Lora(rank=4, alpha=4, targets="all-linear")
    expected = {name for name in linear_names(model) if everything.adapts(name)}
    assert any("visual" in name for name in expected)
    adapted = copy.deepcopy(model)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    with torch.device("meta"):  # as `model` is; real weights of some families are 14 GB
        adapted = get_peft_model(adapted, config)
    layers = {
        name.partition(".lora_")[0] for name, p in adapted.named_parameters() if p.requires_grad
    }
    assert {name.removeprefix("base_model.model.") for name in layers} == expected
    narrowed = Lora(rank=4, alpha=4, targets="all-linear", excluded=lora.NOT_VISION)
    assert not any("visual" in name for name in linear_names(model) if narrowed.adapts(name))


def test_the_layers_of_each_model_are_known(model):
    """The checks look at these names and load no model."""
    kinds = (torch.nn.Linear, torch.nn.Conv3d, torch.nn.Embedding)  # what peft can adapt
    names = {name for name, module in model.named_modules() if isinstance(module, kinds)}
    first = {re.sub(r"\.\d+\.(?=\w+\.|linear)", ".{}.", name) for name in names}
    first -= set(lora.OTHER_LAYERS)
    vision = {name.removeprefix("model.visual.") for name in first if "visual" in name}
    decoder = {name.removeprefix(lora.DECODER_LAYER) for name in first if ".layers." in name}
    assert vision <= set(VISION_LAYERS)
    assert decoder <= set(DECODER_LINEAR)
    assert all("visual" in name or ".layers." in name for name in first)


def test_engine_ranks_are_vllms():
    from vllm.config.lora import MaxLoRARanks

    assert get_args(MaxLoRARanks) == lora.ENGINE_RANKS
    assert Lora(rank=9, alpha=9, targets="all-linear").engine_rank == 16


@pytest.mark.parametrize("recipe", ["vapo_lora", "smoke_lora"])
def test_the_recipes_adapt_all_linear_layers_of_the_language_model(recipe):
    config = recipe_config(recipe)
    check_lora(config)
    assert lora_of(config).num_adapted(5) == dict.fromkeys(DECODER_LINEAR, 5)


def test_a_run_without_adapters_has_none():
    assert lora_of(recipe_config("vapo")) is None
    check(recipe="vapo")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            (f"{MODEL}.exclude_modules=null",),
            ("visual.blocks.0.attn.qkv", "exclude_modules='.*vis"),
        ),
        (
            (f"{MODEL}.exclude_modules=null", f"{MODEL}.target_modules=[q_proj,gate_proj]"),
            ("visual.blocks.0.mlp.gate_proj", "exclude_modules='.*visual.*'"),
        ),
        (
            (f"{MODEL}.exclude_modules=null", f"{MODEL}.target_modules=[qkv]"),
            ("blocks.0.attn.qkv",),
        ),
        ((f"{MODEL}.exclude_modules='.*qkv'",), ("visual.blocks.0.attn.proj",)),
        (
            (
                f"{MODEL}.exclude_modules=null",
                f"{MODEL}.target_modules=[q_proj,model.visual.blocks.31.attn.proj]",
            ),
            ("visual.blocks.31.attn.proj",),
        ),
        ((f"{MODEL}.exclude_modules='.*(blocks.[0-3]|merger).*'",), ("visual.blocks.4.attn.qkv",)),
        ((f"{MODEL}.target_modules=[q_proj,lm_head]",), ("selects lm_head", "leave it out")),
        ((f"{MODEL}.target_modules='.*'",), ("selects lm_head",)),
        ((f"{MODEL}.target_modules=[query]",), ("no linear layer of the language model", "q_proj")),
        ((f"{MODEL}.target_modules=null",), ("no linear layer of the language model",)),
        ((f"{MODEL}.exclude_modules='.*'",), ("no linear layer", "exclude_modules=.*")),
        ((f"{MODEL}.target_modules='(q_proj'",), ("no regular expression", "give a list")),
        *(
            ((f"{MODEL}.lora_rank={rank}",), (f"lora_rank={shown} is no rank", "0 to train all"))
            for rank, shown in (
                *(("-8", "-8"), ("8.5", "8.5"), ("eight", "eight")),
                *(("null", "None"), ("true", "True")),
            )
        ),
        ((f"{MODEL}.lora_rank=513",), ("lora_rank=513 is above 512", "lora.merge=true")),
        *(
            ((f"{MODEL}.lora_alpha={alpha}",), (f"lora_alpha={shown}:", "such as the rank, 64"))
            for alpha, shown in (
                *(("0", "0"), ("-1", "-1"), ("16.5", "16.5")),
                *(("null", "None"), ("true", "True"), ("'64'", "64")),
            )
        ),
        ((f"{MODEL}.target_parameters=[gate_up_proj]",), ("target_parameters", "set it to null")),
        ((f"{MODEL}.lora.rank=8",), ("read by Megatron only", "lora_rank=8")),
        ((f"{MODEL}.lora.alpha=8",), ("lora.alpha=8 is read by Megatron only", "lora_alpha")),
        ((f"{MODEL}.lora.dropout=0.1",), ("lora.dropout=0.1 is read by Megatron only",)),
        ((f"{MODEL}.lora.type=dora",), ("lora.type=dora is read by Megatron only",)),
        ((f"{ROLLOUT}.load_format=dummy",), ("has to read the base weights", "safetensors")),
        (
            (f"{MODEL}.override_config.quantization_config.load_in_4bit=true",),
            ("QLoRA", "override_config.quantization_config", "set it to null"),
        ),
        ((f"{MODEL}.override_config.load_in_4bit=true",), ("load_in_4bit=True", "QLoRA")),
        ((f"{ROLLOUT}.quantization=fp8",), ("rollout.quantization=fp8", "QLoRA")),
        (
            (f"{ROLLOUT}.checkpoint_engine.backend=nccl",),
            ("checkpoint_engine.backend=nccl", "sends no adapters", "lora.merge=true"),
        ),
        (
            ("trainer.v1.trainer_mode=vapo_colocate_async",),
            ("trainer_mode=vapo_colocate_async", "lora.merge=true"),
        ),
        (
            (f"{MODEL}.lora_adapter_path=/nowhere",),
            ("adapter_config.json cannot be read", "vapo ex"),
        ),
    ],
)
def test_settings_that_no_run_can_have_are_refused_with_the_fix(overrides, parts):
    message = refused(*overrides)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "overrides",
    [
        (f"{MODEL}.target_modules=[q_proj,v_proj]", f"{MODEL}.exclude_modules=null"),
        (f"{MODEL}.target_modules=ALL-LINEAR",),
        (f"{MODEL}.lora.merge=true", f"{ROLLOUT}.load_format=dummy"),
        (f"{MODEL}.lora.merge=true", f"{MODEL}.lora_rank=513"),
        (f"{MODEL}.lora_rank=512", f"{MODEL}.lora_alpha=1"),
        (f"{MODEL}.lora_rank=0", f"{MODEL}.lora_alpha=0"),
        (f"{MODEL}.lora.merge=true", f"{ROLLOUT}.checkpoint_engine.backend=nccl"),
        (f"{MODEL}.lora.merge=true", "trainer.v1.trainer_mode=vapo_colocate_async"),
        ("trainer.v1.trainer_mode=vapo_saving",),  # of vapo.debug.save_rollouts: synchronous
        (f"{ROLLOUT}.load_format=auto",),
        (f"{MODEL}.target_modules='.*language_model.*_proj'", f"{MODEL}.exclude_modules=null"),
        (f"{MODEL}.exclude_modules='.*(blocks|merger).*'",),
        (f"{MODEL}.target_modules='.*language_model.layers.2[0-7].*q_proj'",),
        (f"{MODEL}.target_modules=[model.language_model.layers.27.self_attn.q_proj]",),
        (f"{MODEL}.lora.merge=true", f"{ROLLOUT}.quantization=fp8"),
    ],
)
def test_other_settings_are_accepted(overrides):
    check(*overrides)


def test_merged_weights_are_refused_where_bfloat16_rounds_them():
    message = refused(f"{MODEL}.lora.merge=true", recipe="smoke_lora")
    assert "rollout.dtype=float32" in message and "lora.merge=false" in message
    check(f"{MODEL}.lora.merge=true", f"{ROLLOUT}.dtype=bfloat16", recipe="smoke_lora")


@pytest.fixture
def adapter(tmp_path):
    """A folder with the config of an adapter."""

    def write(**changes):
        stated = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], **changes}
        (tmp_path / "adapter_config.json").write_text(json.dumps(stated))
        return f"{MODEL}.lora_adapter_path={tmp_path}"

    return write


def test_training_goes_on_from_an_adapter_of_the_same_rank_and_alpha(adapter):
    check(adapter(), recipe="smoke_lora")
    config = config_with(adapter(), recipe="smoke_lora")
    adapted = {name: number for name, number in lora_of(config).num_adapted(5).items() if number}
    assert adapted == {"self_attn.q_proj": 5}
    assert "set actor_rollout_ref.model.lora_rank=4" in refused(adapter(r=4), recipe="smoke_lora")
    assert "lora_alpha=1" in refused(adapter(lora_alpha=1), recipe="smoke_lora")
    assert "rank of that adapter" in refused(adapter(), recipe="smoke")


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 4}},
        {"alpha_pattern": {"q_proj": 4}},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"lora_bias": True},
        {"lora_dropout": 0.05},
        {"trainable_token_indices": [1]},
        {"layer_replication": [[0, 2], [1, 3]]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"peft_type": "LOHA"},
    ],
)
def test_an_adapter_of_another_equation_is_no_start(adapter, changes):
    message = refused(adapter(**changes), recipe="smoke_lora")
    assert next(iter(changes)) in message and "merge it into the model" in message


def test_an_adapter_as_peft_writes_it_is_a_start(tmp_path):
    LoraConfig(
        task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj"]
    ).save_pretrained(tmp_path)
    check(f"{MODEL}.lora_adapter_path={tmp_path}", recipe="smoke_lora")


def test_an_adapter_of_the_vision_tower_is_no_start(adapter):
    message = refused(adapter(target_modules=["qkv"]), recipe="smoke_lora")
    assert "visual.blocks.0.attn.qkv" in message


@pytest.mark.parametrize("text", ["", "{", "[1]", "<html>"])
def test_an_adapter_whose_config_is_damaged_is_no_start(tmp_path, text):
    (tmp_path / "adapter_config.json").write_text(text)
    assert "adapter_config.json" in refused(
        f"{MODEL}.lora_adapter_path={tmp_path}", recipe="smoke_lora"
    )


def test_quantized_weights_are_no_start(tmp_path):
    refuse_quantized(tmp_path, {"model_type": "qwen2_5_vl"})
    with pytest.raises(ValueError, match=r"holds weights in bitsandbytes.*QLoRA.*bfloat16"):
        refuse_quantized(tmp_path, {"quantization_config": {"quant_method": "bitsandbytes"}})
