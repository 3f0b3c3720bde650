"""What the engine sends to vLLM, whose place another class takes here."""

import io
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image
from transformers import AutoProcessor

from vapo_verl.data.claims_column import Claim
from vapo_verl.data.control_tokens import RESPONSE_TAGS
from vapo_verl.data.images import sized_image
from vapo_verl.digits.model.random_models import make_random_model
from vapo_verl.evaluation.early_decision import EarlyOptions
from vapo_verl.evaluation.early_decision.decision_command import decide_early
from vapo_verl.evaluation.image_swap import ImageSwapOptions
from vapo_verl.evaluation.image_swap.swap_probe import ImageSwap
from vapo_verl.evaluation.interventions import InterventionOptions
from vapo_verl.evaluation.interventions.intervention_probe import apply_interventions
from vapo_verl.evaluation.perception import PerceptionOptions
from vapo_verl.evaluation.perception.perception_probe import perceive
from vapo_verl.evaluation.probing.engine import Engine
from vapo_verl.evaluation.probing.probe_options import (
    EngineOptions,
    ProbeOptions,
    QuestionOptions,
)
from vapo_verl.evaluation.probing.respond import bound_question
from vapo_verl.evaluation.probing.rows import Row
from vapo_verl.run_folder import RunError

WRITTEN = " It is red. It is a 3. That is all."


class Vllm:
    """Writes `WRITTEN` after every prompt, or its first answer, and keeps the prompts."""

    tokenizer = None

    def __init__(self, **_):
        self.prompts = []

    def generate(self, requests, sampling, use_tqdm):
        self.prompts += [request["prompt_token_ids"] for request in requests]
        ids = self.tokenizer.encode(WRITTEN, add_special_tokens=False)
        written = [
            [next(iter(each["logit_bias"]))] if "logprobs" in each else ids[: each["max_tokens"]]
            for each in sampling
        ]
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(
                        token_ids=ids,
                        finish_reason="length",
                        logprobs=[{token: SimpleNamespace(logprob=-0.1) for token in ids}],
                    )
                ],
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


def test_prompts_and_turns_are_rendered_with_the_given_arguments(start):
    turn = "{{ mood }} {{ turn.role }}: {{ turn.content[-1].text }} "
    template = f"{{% for turn in messages %}}{turn}{{% endfor %}}"
    engine, _ = start(chat_template_kwargs={"chat_template": template, "mood": "merry"})
    words = engine.decode(engine.prompt(ROW).ids)
    assert words == "merry user: Think in <think> </think>. "
    assert engine.decode(engine.user_turn(0, "Look.")) == " merry user: Look. "


def test_a_template_of_the_run_replaces_that_of_the_model(start):
    template = "{% for turn in messages %}{{ turn.role }} <think>{% endfor %}"
    engine, _ = start(chat_template=template)
    assert engine.decode(engine.prompt(ROW).ids) == "user <think>"
    assert start()[0].controls is not None
    assert engine.controls is None  # who writes the tags has learnt them


ASKED = QuestionOptions(question="\n{claim} True?")
WITH_CLAIMS = replace(ROW, claims=(Claim(text="It is red.", label=True),))


def test_perception_asks_the_given_question(start, tmp_path):
    engine, prompts = start()
    options = ProbeOptions(engine=EngineOptions(model="m"), data=tmp_path, out=tmp_path)
    (record,) = perceive(engine, [WITH_CLAIMS], options, PerceptionOptions(asked=ASKED))
    asked = [engine.decode(ids) for ids in prompts[1:]]
    assert len(asked) == len(record["anchors"]) > 1
    assert all(text.endswith("\nIt is red. True?") for text in asked)
    assert all(anchor["correct"] for anchor in record["anchors"])


def test_image_swap_asks_the_given_question(start, tmp_path, monkeypatch):
    def read(self, contexts, lengths):
        pairs = zip(contexts, lengths, strict=True)
        return [[{token: -0.1} for token in each.ids[-length:]] for each, length in pairs]

    engine, prompts = start()
    monkeypatch.setattr(Engine, "read", read)
    other = replace(WITH_CLAIMS, number=1, images=(encoded(64, 65),))
    options = ProbeOptions(engine=EngineOptions(model="m"), data=tmp_path, out=tmp_path)
    swap = ImageSwap(options, ImageSwapOptions(num_cuts=2, asked=ASKED), [WITH_CLAIMS, other])
    swap(engine, [WITH_CLAIMS, other])
    assert any(engine.decode(ids).endswith("\nIt is red. True?") for ids in prompts)


def test_words_that_cannot_follow_the_question_are_refused(start):
    engine, _ = start()
    with pytest.raises(RunError, match=r"--yes-words.*none is a single token"):
        bound_question(engine, replace(ASKED, yes_words=("Certainly so",)))


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
