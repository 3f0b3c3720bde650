"""A micro-batch without images: the upstream fault is still there, and mended here."""

import inspect

import pytest
import torch
import verl.models.transformers.qwen2_vl as upstream
from transformers import Qwen2_5_VLForConditionalGeneration

from vapo_verl.digits.model import model_dir
from vapo_verl.patches import text_only_forward


@pytest.fixture(scope="module")
def model():
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        model_dir(), dtype=torch.float32
    ).model


def test_upstream_still_fails_on_text_alone(model):
    with pytest.raises(AttributeError, match="mean"):
        text_only_forward.upstream_get_input_embeds(model, torch.tensor([[1, 2, 3]]))
        pytest.fail(
            "veRL now handles batches without images: vapo_verl/patches/text_only_forward.py "
            "and its call can go"
        )


def test_the_signature_is_upstreams():
    ours = inspect.signature(text_only_forward.get_input_embeds).parameters
    assert list(ours) == list(
        inspect.signature(text_only_forward.upstream_get_input_embeds).parameters
    )


def test_text_alone_embeds_as_text_and_reaches_the_vision_tower(model):
    ids = torch.tensor([[1, 2, 3]])
    embeds, mask = text_only_forward.get_input_embeds(model, ids, torch.ones_like(ids))
    assert torch.equal(embeds, model.get_input_embeddings()(ids))
    assert mask.tolist() == [[1, 1, 1]]
    # every FSDP rank must run the tower, whatever its micro-batch holds
    embeds.sum().backward()
    gradients = [p.grad for p in model.visual.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_applying_twice_replaces_once():
    text_only_forward.apply()
    text_only_forward.apply()
    assert upstream._get_input_embeds is text_only_forward.get_input_embeds
    assert text_only_forward.upstream_get_input_embeds is not text_only_forward.get_input_embeds
