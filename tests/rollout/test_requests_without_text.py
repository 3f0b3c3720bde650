"""Requests of the server make no text, and their ids and log probabilities are the same."""

import asyncio

import numpy as np
import pytest
from transformers import AutoTokenizer
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.outputs import LogprobsLists

from tests.core_requests import core_request
from vapo_verl.anchors import Probes
from vapo_verl.digits.model import model_dir
from vapo_verl.rollout.server import without_text

ROLLOUT = {"temperature": 1.0, "top_p": 1.0, "logprobs": True}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_dir())


@pytest.fixture
def sent(monkeypatch):
    """Sampling parameters that reach veRL's server."""
    found = []

    async def generate(self, prompt_ids, sampling_params, request_id, **rest):
        found.append(sampling_params)
        return TokenOutput(token_ids=[1])

    monkeypatch.setattr(vLLMHttpServer, "generate", generate)
    return found


def final_output(tokenizer, ids, sampling_params):
    """vLLM's last output of a request for which the engine decodes `ids`."""
    processor = OutputProcessor(tokenizer=tokenizer, log_stats=False)
    request = core_request("a", SamplingParams(**sampling_params))
    processor.add_request(request, prompt=None)
    for position, token in enumerate(ids):
        last = position == len(ids) - 1
        output = EngineCoreOutput(
            request_id="a",
            new_token_ids=[token],
            new_logprobs=LogprobsLists(
                np.array([[token]]), np.array([[-0.25 * position]]), np.array([position])
            ),
            finish_reason=FinishReason.STOP if last else None,
        )
        found = processor.process_outputs([output])
    return found.request_outputs[-1].outputs[0]


def test_a_response_and_a_probe_are_sent_without_text(server_of, sent):
    server = server_of("smoke")
    own = dict(ROLLOUT)
    asyncio.run(server.generate([5, 6], own, "r"))
    probes = Probes(token_ids=[5], cuts=[1, 1], questions=[[6], [7]])
    asyncio.run(server.probe(probes, {"max_tokens": 1, "logprobs": True}))
    assert own == ROLLOUT, "the caller's parameters are its own"
    assert len(sent) == 3
    assert all(not params["detokenize"] and params["flat_logprobs"] for params in sent)
    assert {name: sent[0][name] for name in ROLLOUT} == ROLLOUT


def test_a_request_with_stop_strings_has_text(server_of, sent):
    asyncio.run(server_of("smoke").generate([5], {"stop": ["</answer>"]}, "r"))
    SamplingParams(**sent[0])  # vLLM refuses stop strings without text
    assert sent[0]["detokenize"]


def test_a_request_may_ask_for_text():
    assert without_text({"detokenize": True, "flat_logprobs": False}) == {
        "detokenize": True,
        "flat_logprobs": False,
    }


def test_ids_and_log_probabilities_are_those_of_a_request_with_text(tokenizer):
    ids = [*tokenizer("3 above 4 </think> déjà \u4f60").input_ids, tokenizer.eos_token_id]
    asked = {"logprobs": 0, "max_tokens": 64}
    verls = final_output(tokenizer, ids, asked)
    ours = final_output(tokenizer, ids, without_text(asked))
    assert verls.text and not ours.text
    assert list(ours.token_ids) == list(verls.token_ids) == ids
    # how veRL's server reads them
    read = [
        [of_token[ids[i]].logprob for i, of_token in enumerate(output.logprobs)]
        for output in (verls, ours)
    ]
    assert read[0] == read[1] == [-0.25 * i for i in range(len(ids))]
    assert ours.finish_reason == verls.finish_reason == "stop"
