"""A model in bfloat16 keeps rotary frequencies in float32, as transformers and vLLM have them."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from vapo_verl.digits.model.random_models import make_random_model
from vapo_verl.patches.upstream import restore_buffers

LENGTH = 1200
"""Tokens; the error grows with the position."""


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_cast_model_computes_as_before_the_cast(family, tmp_path):
    make_random_model(tmp_path, "tiny", family=family, dtype=torch.float32)
    config = AutoConfig.from_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ids = torch.arange(LENGTH)[None] % 100 + 20

    def logits():
        with torch.no_grad():
            return model(input_ids=ids).logits

    exact = logits()
    model.to(torch.bfloat16)  # as veRL does after it has loaded a model
    assert not torch.allclose(logits(), exact, atol=0.1)
    assert restore_buffers(model, config) == 3  # two of the decoder, one of the vision tower
    assert torch.equal(logits(), exact)
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}


def test_adapters_do_not_hide_them(tmp_path):
    from peft import LoraConfig, get_peft_model

    make_random_model(tmp_path, "tiny", dtype=torch.float32)
    config = AutoConfig.from_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"])).to(torch.bfloat16)
    assert restore_buffers(adapted, config) == 3


def test_wrappers_of_fsdp_do_not_hide_them(tmp_path):
    class Wrapped(torch.nn.Module):
        """Names as those of FullyShardedDataParallel."""

        def __init__(self, module):
            super().__init__()
            self._fsdp_wrapped_module = module

    make_random_model(tmp_path, "tiny", dtype=torch.bfloat16)
    config = AutoConfig.from_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    exact = model.model.language_model.rotary_emb.inv_freq.clone()
    model.to(torch.bfloat16)
    model.model.language_model = Wrapped(model.model.language_model)
    assert restore_buffers(Wrapped(model), config) == 3
    inner = model.model.language_model._fsdp_wrapped_module
    assert torch.equal(inner.rotary_emb.inv_freq, exact)


def test_a_model_in_float32_is_left_alone(tmp_path):
    make_random_model(tmp_path, "tiny", dtype=torch.float32)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    before = {name: buffer.data_ptr() for name, buffer in model.named_buffers()}
    assert restore_buffers(model, model.config) == 0
    assert {name: buffer.data_ptr() for name, buffer in model.named_buffers()} == before
