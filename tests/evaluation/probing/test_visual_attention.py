"""What an engine's completions hold of visual attention, with vLLM's engine replaced."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vapo_verl.attention import engine_args
from vapo_verl.digits.model import model_dir
from vapo_verl.evaluation.probing.engine import Context, Engine, ShownImage
from vapo_verl.evaluation.probing.probe_options import EngineOptions


class StandIn:
    """vllm.LLM: three tokens for every request, 0.5 of their attention on what it shows."""

    def __init__(self, **arguments):
        self.arguments = arguments
        StandIn.last = self

    def generate(self, requests, sampling, **options):
        return [self._output("multi_modal_data" in request) for request in requests]

    def _output(self, shows):
        values = np.full(3, 0.5 if shows else 0.0, dtype=np.float32)
        written = SimpleNamespace(token_ids=[5, 6, 7], routed_experts=values, finish_reason="stop")
        return SimpleNamespace(outputs=[written], prompt_token_ids=[1, 2], num_cached_tokens=0)


@pytest.fixture
def engine_of(monkeypatch):
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    import vllm

    monkeypatch.setattr(vllm, "LLM", StandIn)
    options = EngineOptions(model=str(model_dir()))
    return lambda images: Engine(options, images_per_prompt=images, attention=True)


def test_a_context_without_images_has_none(engine_of):
    shown = ShownImage(Image.new("RGB", (56, 56)))
    contexts = [Context(ids=(1, 2), images=()), Context(ids=(1, 2), images=(shown,))]
    without, with_image = engine_of(1).complete(contexts, 3)
    assert np.isnan(without.attention).tolist() == [True, True]
    assert with_image.attention.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("images", "spans"), [(1, 32), (33, 33)])
def test_as_many_spans_are_captured_as_a_context_has_images(engine_of, images, spans):
    engine_of(images)
    expected = engine_args(max_spans=spans)["additional_config"]
    assert StandIn.last.arguments["additional_config"] == expected
