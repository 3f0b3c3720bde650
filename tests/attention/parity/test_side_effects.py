"""Capture changes nothing of what is generated."""

import pytest

from vapo_verl.gpu_check.parity import Batch, make_prompts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROMPTS = make_prompts(1, 2, 0, 3, 1, 0)
SEEDS = [{"seed": i} for i in range(len(PROMPTS))]
"""One for every request: vLLM on CPU draws without seeds as soon as one request has none."""
HOW = {
    "greedy": Batch(prompts=PROMPTS, sampling={"temperature": 0.0, "logprobs": 5}),
    "sampled": Batch(prompts=PROMPTS, sampling={"logprobs": 5}, sampling_of_each=SEEDS),
}


@pytest.fixture(scope="module")
def with_and_without(engines):
    return [engines.run(*HOW.values(), **x).batches for x in ({}, {"capture": {}})]


@pytest.mark.parametrize("how", HOW)
def test_tokens_and_logprobs_are_bitwise_the_same(with_and_without, how):
    captured, bare = (batches[list(HOW).index(how)] for batches in with_and_without)
    for a, b in zip(captured, bare, strict=True):
        assert a.completion.token_ids == b.completion.token_ids
        assert a.completion.logprobs == b.completion.logprobs
        assert a.completion.routed_experts is not None
        assert b.completion.routed_experts is None
