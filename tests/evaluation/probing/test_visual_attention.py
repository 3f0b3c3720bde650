"""What an engine's completions hold of visual attention, with vLLM's engine replaced."""

import os

import pytest

from vapo_verl.attention import engine_args
from vapo_verl.digits.model import model_dir
from vapo_verl.evaluation.probing.engine import Engine
from vapo_verl.evaluation.probing.probe_options import EngineOptions


class StandIn:
    """vllm.LLM, for its arguments."""

    def __init__(self, **arguments):
        self.arguments = arguments
        StandIn.last = self


@pytest.fixture
def engine_of(monkeypatch):
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    import vllm

    monkeypatch.setattr(vllm, "LLM", StandIn)
    options = EngineOptions(model=str(model_dir()))
    return lambda images: Engine(options, images_per_prompt=images, attention=True)


@pytest.mark.parametrize(("images", "spans"), [(1, 32), (33, 33)])
def test_as_many_spans_are_captured_as_a_context_has_images(engine_of, images, spans):
    engine_of(images)
    expected = engine_args(max_spans=spans)["additional_config"]
    assert StandIn.last.arguments["additional_config"] == expected
