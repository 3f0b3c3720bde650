"""The engine against itself: continued prefixes, predictions and read log probabilities."""

import math

import numpy as np
import pytest

from vapo_verl.digits.model import model_dir
from vapo_verl.evaluation.probing import engine as engine_module
from vapo_verl.evaluation.probing.engine import Engine, request_of
from vapo_verl.evaluation.probing.probe_options import EngineOptions, QuestionOptions
from vapo_verl.evaluation.probing.respond import bound_question
from vapo_verl.evaluation.probing.rows import read_rows
from vapo_verl.run_folder import RunError

pytestmark = pytest.mark.slow
BLOCK = 16


@pytest.fixture(scope="module")
def rows(digits_data):
    return read_rows(digits_data(test=6)["test"], num_rows=None, seed=0, answer_style="exact")


@pytest.fixture(scope="module")
def engine():
    options = EngineOptions(model=str(model_dir()), dtype="float32", kv_cache_gib=0.25)
    with Engine(options, images_per_prompt=2, attention=True) as started:
        yield started


@pytest.fixture(scope="module")
def responses(engine, rows):
    prompts = [engine.prompt(row) for row in rows]
    return list(zip(prompts, engine.complete(prompts, 160), strict=True))


def test_a_cut_response_goes_on_as_it_did(engine, responses):
    for prompt, whole in responses:
        cut = 2 * len(whole.ids) // 3
        (rest,) = engine.complete([prompt.then(whole.ids[:cut])], 160)
        assert rest.ids == whole.ids[cut:]
        assert rest.finish == whole.finish == "stop"
        np.testing.assert_allclose(rest.attention, whole.attention[cut:], atol=1e-5)
        # all but the last, unfinished block of the prefix was in vLLM's cache, image included
        assert rest.num_prompt_tokens == whole.num_prompt_tokens + cut
        assert rest.num_cached_tokens >= rest.num_prompt_tokens - BLOCK - 1


def test_attention_is_that_of_an_image(responses):
    for _, whole in responses:
        assert len(whole.attention) == len(whole.ids)
        assert (whole.attention > 0).all() and (whole.attention < 1).all()


def test_read_log_probabilities_are_those_of_the_greedy_tokens(engine, responses):
    contexts = [prompt.then(whole.ids) for prompt, whole in responses]
    read = engine.read(contexts, [len(whole.ids) for _, whole in responses])
    for (_, whole), tops in zip(responses, read, strict=True):
        assert len(tops) == len(whole.ids)
        for token_id, top in zip(whole.ids, tops, strict=True):
            assert top[token_id] == max(top.values())
            assert sum(map(math.exp, top.values())) <= 1 + 1e-5


def test_verdicts_tell_true_claims_from_false_ones(engine, rows):
    question = bound_question(engine, QuestionOptions())
    asked = [(engine.prompt(row), claim) for row in rows for claim in row.claims]
    predictions = engine.predict(
        [prompt.then(question.token_ids(claim.text)) for prompt, claim in asked], question
    )
    p_yes = np.array([prediction.p_yes for prediction in predictions])
    labels = np.array([claim.label for _, claim in asked])
    assert p_yes[labels].mean() > p_yes[~labels].mean() + 0.1
    assert ((p_yes >= 0) & (p_yes <= 1)).all()


def test_images_are_processed_once_and_results_are_those_of_vllms_own_keys(
    engine, rows, monkeypatch
):
    """Samples, probes at cuts and reading: the image processor runs once for each image."""
    from transformers import AutoProcessor

    processor = type(AutoProcessor.from_pretrained(model_dir()).image_processor)
    preprocess, runs = processor.preprocess, []

    def counted(self, images, *args, **kwargs):
        runs.append(images)
        return preprocess(self, images, *args, **kwargs)

    def without_keys(context):
        return {k: v for k, v in request_of(context).items() if k != "multi_modal_uuids"}

    def results():
        engine.forget()
        prompts = [engine.prompt(row) for row in rows for _ in range(3)]
        seeds = list(range(len(prompts)))
        written = engine.complete(prompts, 40, temperature=1.0, seeds=seeds)
        asked = [
            prompt.then([*one.ids[:cut], *question.token_ids(row.claims[cut].text)])
            for prompt, one, row in zip(
                prompts, written, [row for row in rows for _ in range(3)], strict=True
            )
            for cut in range(3)
        ]
        full = [prompt.then(one.ids) for prompt, one in zip(prompts, written, strict=True)]
        predicted = [each.p_yes for each in engine.predict(asked, question)]
        return [one.ids for one in written], predicted, engine.read(full, [1] * len(full))

    question = bound_question(engine, QuestionOptions())
    monkeypatch.setattr(processor, "preprocess", counted)
    ours = results()
    assert len(runs) == len({image for row in rows for image in row.images}) == len(rows)
    monkeypatch.setattr(engine_module, "request_of", without_keys)
    assert results() == ours


def test_a_user_turn_shows_another_image(engine, rows, responses):
    (prompt, whole), turn = responses[0], engine.user_turn(1, "Again.")
    context = prompt.then(whole.ids[:8]).then(turn, prompt.images[0])
    assert engine.decode(turn).split() == ["user", "Again.", "assistant"]
    (more,) = engine.complete([context], 4)
    num_image_tokens = whole.num_prompt_tokens - len(prompt.ids) + 1
    assert more.num_prompt_tokens == len(context.ids) + 2 * (num_image_tokens - 1)


def test_a_context_too_long_is_refused_with_vllms_reason(engine, responses):
    prompt, whole = responses[0]
    with pytest.raises(RunError, match="vLLM refused a request"):
        engine.complete([prompt.then(whole.ids * 1000)], 1)
