"""What the engine sends to vLLM, whose place another class takes here."""

import io
import sys
from types import SimpleNamespace

import pytest
from PIL import Image
from transformers import AutoProcessor

from vapo_verl.data.control_tokens import RESPONSE_TAGS
from vapo_verl.data.images import sized_image
from vapo_verl.digits.model.random_models import make_random_model
from vapo_verl.evaluation.early_decision import EarlyOptions
from vapo_verl.evaluation.early_decision.decision_command import decide_early
from vapo_verl.evaluation.interventions import InterventionOptions
from vapo_verl.evaluation.interventions.intervention_probe import apply_interventions
from vapo_verl.evaluation.probing.engine import Engine
from vapo_verl.evaluation.probing.probe_options import EngineOptions, ProbeOptions
from vapo_verl.evaluation.probing.rows import Row

WRITTEN = " It is red. It is a 3. That is all."


class Vllm:
    """Writes `WRITTEN` after every prompt, and keeps the prompts."""

    tokenizer = None

    def __init__(self, **_):
        self.prompts = []

    def generate(self, requests, sampling, use_tqdm):
        self.prompts += [request["prompt_token_ids"] for request in requests]
        ids = self.tokenizer.encode(WRITTEN, add_special_tokens=False)
        written = [ids[: each["max_tokens"]] for each in sampling]
        return [
            SimpleNamespace(
                outputs=[SimpleNamespace(token_ids=ids, finish_reason="length")],
                prompt_token_ids=request["prompt_token_ids"],
                num_cached_tokens=0,
            )
            for request, ids in zip(requests, written, strict=True)
        ]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose think tags are untrained tokens: its chat template never writes them."""
    folder = tmp_path_factory.mktemp("models") / "qwen3_vl"
    make_random_model(folder, "tiny", family="qwen3_vl", think_tokens=True, weights=False)
    return folder


@pytest.fixture
def start(model, monkeypatch):
    """`start(min_pixels=..)`: an engine and the prompts that it sends."""

    def started(**options):
        vllm = Vllm()
        fake = SimpleNamespace(LLM=lambda **_: vllm, SamplingParams=lambda **values: values)
        monkeypatch.setitem(sys.modules, "vllm", fake)
        engine = Engine(EngineOptions(model=str(model), **options), images_per_prompt=1)
        vllm.tokenizer = AutoProcessor.from_pretrained(model).tokenizer
        return engine, vllm.prompts

    return started


def encoded(width, height):
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return file.getvalue()


ROW = Row(
    number=0,
    data_source="made up",
    index=None,
    messages=({"role": "user", "content": "<image>Think in <think> </think>."},),
    images=(encoded(64, 64),),
    ground_truth="3",
    style="exact",
    claims=(),
)


def test_forced_text_spells_the_tags_as_prompts_do(start, tmp_path):
    engine, prompts = start()
    added = engine.tokenizer.get_added_vocab()
    tags = {added[tag] for tag in RESPONSE_TAGS}
    assert tags & {*engine.encode("</think>")}  # the token that no prompt holds
    assert engine.decode(engine.encode_plain("a</think>b")) == "a</think>b"
    options = ProbeOptions(engine=EngineOptions(model="m"), data=tmp_path, out=tmp_path)
    decide_early(engine, [ROW], options, EarlyOptions(num_cuts=2))
    inserted = {"focus_text": " <think>Look.</think>", "replay_text": "Go on in <think>."}
    apply_interventions(engine, [ROW], options, InterventionOptions(**inserted))
    texts = [engine.tokenizer.decode(ids) for ids in prompts]
    for text in ("have to answer now.\n</think>", *inserted.values()):
        assert any(text in each for each in texts)
    assert not [engine.tokenizer.decode(ids) for ids in prompts if tags & {*ids}]


@pytest.mark.parametrize(
    ("struct", "limits", "size"),
    [
        ({}, {}, (256, 128)),
        ({"max_pixels": 64 * 128}, {}, (128, 64)),
        ({"resized_height": 64, "resized_width": 96}, {}, (96, 64)),
        # those of the run come first, as in training
        ({"max_pixels": 64 * 128}, {"min_pixels": 256 * 128}, (256, 128)),
    ],
)
def test_an_image_has_the_size_that_its_struct_asks_for(struct, limits, size, start):
    engine, _ = start(**limits)
    entry = sized_image({"bytes": encoded(256, 128), "path": None, **struct})
    assert engine.image(entry).size == size
