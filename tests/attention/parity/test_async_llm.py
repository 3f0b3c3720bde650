"""Through AsyncLLM: whole, paused and aborted requests."""

import pytest

from vapo_verl.gpu_check.parity import PROCESSES, Batch, make_prompts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LONG = {"max_tokens": 300}
PROMPTS = make_prompts(1, 2, 0, 3, 1, 2)


@pytest.fixture(scope="module")
def batches(engines):
    """Of one engine that is paused and resumed, then aborts, then runs to the end."""
    return engines.run(
        Batch(prompts=PROMPTS, sampling=LONG, interrupt="pause"),
        Batch(prompts=PROMPTS, sampling=LONG, interrupt="abort"),
        Batch(prompts=PROMPTS, sampling={"n": 2}),
        interface="AsyncLLM",
        env=PROCESSES,
    ).batches


def test_pause_in_flight(batches, assert_parity):
    completions = [x.completion for x in batches[0]]
    assert all(x.finish_reason == "abort" for x in completions)
    assert all(0 < len(x.token_ids) < LONG["max_tokens"] for x in completions)
    assert_parity(batches[0])


def test_abort_in_flight_beside_requests_that_go_on(batches, assert_parity):
    aborted, others = batches[1][::2], batches[1][1::2]
    assert {x.completion.finish_reason for x in aborted} == {"abort"}
    assert all(0 < len(x.completion.token_ids) < LONG["max_tokens"] for x in aborted)
    assert {len(x.completion.token_ids) for x in others} == {LONG["max_tokens"]}
    assert_parity(batches[1])


def test_two_samples(batches, assert_parity):
    assert len(batches[2]) == 2 * len(PROMPTS)
    assert_parity(batches[2])
