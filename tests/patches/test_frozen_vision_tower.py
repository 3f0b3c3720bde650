"""Which parameters are frozen, where in an engine's work, and what a step then changes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from vapo_verl.digits.model.random_models import make_random_model
from vapo_verl.patches import text_only_forward, upstream

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5"]
SCRIPT = Path(__file__).with_name("frozen_tower_on_ranks.py")


@pytest.fixture
def tiny(tmp_path):
    """`tiny(family)` -> a model with random weights."""

    def make(family="qwen2_5_vl"):
        make_random_model(tmp_path, "tiny", family=family, dtype=torch.float32)
        return AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)

    return make


def trained(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tower_with_its_mergers_is_frozen_and_nothing_else(tiny, family):
    model = tiny(family)
    names, state = trained(model), {*model.state_dict()}
    upstream.freeze_tower(model)
    frozen = names - trained(model)
    assert frozen == {name for name in names if name.startswith("model.visual.")}
    assert any(".merger." in name for name in frozen)
    assert {*model.state_dict()} == state  # checkpoints and the engine get all weights


def test_text_alone_still_trains_the_language_model(tiny):
    """The dummy image that keeps FSDP ranks in step has no gradient."""
    model = tiny()
    upstream.freeze_tower(model)
    ids = torch.tensor([[30, 31, 32]])
    embeds, _ = text_only_forward.get_input_embeds(model.model, ids)
    embeds.square().sum().backward()
    assert all(weight.grad is None for weight in model.model.visual.parameters())
    assert model.get_input_embeddings().weight.grad.any()


def test_adapters_in_the_tower_are_frozen_too(tiny):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny(), LoraConfig(target_modules=["qkv", "q_proj"]))
    assert any(".visual." in name for name in trained(model))
    upstream.freeze_tower(model)
    left = trained(model)
    assert left and not any(".visual." in name for name in left)
    assert all(".q_proj.lora_" in name for name in left)


def test_a_model_without_a_tower_is_refused(tiny):
    text = tiny().model.language_model
    with pytest.raises(ValueError, match=r"freeze_vision_tower=True: .* set it to false"):
        upstream.freeze_tower(text)


def test_an_engine_shards_a_model_that_is_frozen_already(tiny):
    class Engine:
        def _build_fsdp_module(self, module):
            self.sharded = trained(module)
            return module

    engine, model = Engine(), tiny()
    upstream.use_frozen_tower(engine)
    assert engine._build_fsdp_module(model) is model
    assert engine.sharded == trained(model) and not any("visual" in name for name in engine.sharded)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_train_send_and_save_as_before_but_the_tower_stays(tmp_path):
    """With FSDP 1 and 2; one rank has an image, the other text alone."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*command, str(SCRIPT), str(tmp_path)],
        env={**os.environ, "VERL_PLATFORM": "cpu", "TORCHDYNAMO_DISABLE": "1"},
        check=True,
        timeout=600,
    )
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == dict.fromkeys(found, True)
