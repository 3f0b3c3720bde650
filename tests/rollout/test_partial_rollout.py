"""Responses in parts, and the gate that keeps new weights away from their probes."""

import asyncio

import numpy as np
import pytest
from omegaconf import OmegaConf
from verl.workers.rollout.replica import TokenOutput

from vapo_verl.rollout.partial_rollout import (
    ATTENTION,
    PartialRolloutClient,
    ResponseGate,
    joined_fields,
)

SEED = 100


def part(*tokens, version, reason="completed", attention=None):
    fields = {"global_steps": version}
    if attention is not None:
        fields[ATTENTION] = np.array(attention, dtype=np.float32)
    return TokenOutput(
        token_ids=list(tokens), log_probs=[-0.5] * len(tokens), stop_reason=reason,
        extra_fields=fields,
    )  # fmt: skip


class Call:
    """A method of a Ray actor."""

    def __init__(self, answer):
        self._answer = answer

    def remote(self, *args, **kwargs):
        async def result():
            return self._answer(*args, **kwargs)

        return result()


class Server:
    """Answers a request for a response with its next part."""

    def __init__(self, *parts):
        self._parts = iter(parts)
        self.requests = []
        self.generate = Call(self._generate)

    def _generate(self, **request):
        self.requests.append(request)
        return next(self._parts)


@pytest.fixture
def ask(monkeypatch):
    async def no_pause(_):
        return None

    def run(*parts, **sampling):
        server = Server(*parts)
        client = PartialRolloutClient(
            OmegaConf.create(
                {"actor_rollout_ref": {"rollout": {"response_length": 5, "name": "vllm"}}}
            )
        )

        async def acquire(_, **__):
            return "here", server

        async def generate():
            monkeypatch.setattr("verl.workers.rollout.llm_server.asyncio.sleep", no_pause)
            return await client.generate("s", prompt_ids=[1, 2], sampling_params=sampling)

        monkeypatch.setattr(client, "_acquire_server", acquire)
        monkeypatch.setattr(client, "_release_server", lambda *_, **__: None)
        return asyncio.run(generate()), server.requests

    return run


def test_an_interrupted_response_has_the_attention_of_all_its_tokens(ask):
    output, requests = ask(
        part(7, 8, version=3, reason="aborted", attention=[0.5, 0.25]),
        part(version=4, reason="aborted"),
        part(9, version=5, attention=[0.125]),
    )
    assert output.token_ids == [7, 8, 9]
    assert output.extra_fields[ATTENTION].tolist() == [0.5, 0.25, 0.125]
    assert [request["prompt_ids"] for request in requests] == [[1, 2], [1, 2, 7, 8], [1, 2, 7, 8]]


def test_versions_are_those_that_wrote_a_token(ask):
    output, _ = ask(
        part(version=1, reason="aborted"),
        part(7, version=2, reason="aborted"),
        part(8, version=4),
    )
    fields = output.extra_fields
    assert (fields["min_global_steps"], fields["max_global_steps"]) == (2, 4)


def test_a_resumed_response_draws_with_another_seed(ask):
    _, requests = ask(part(7, 8, version=1, reason="aborted"), part(9, version=2), seed=SEED)
    assert [request["sampling_params"]["seed"] for request in requests] == [SEED, SEED + 2]
    _, requests = ask(part(7, version=1, reason="aborted"), part(9, version=2))
    assert "seed" not in requests[1]["sampling_params"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.5], [0.5, np.nan]), ([0.5, 0.25, 1.0], [0.5, 0.25]), (None, [np.nan, np.nan])],
)
def test_a_part_has_one_value_per_token(values, expected):
    joined = joined_fields([part(7, 8, version=1, attention=values), part(9, version=1,
                           attention=[0.75])])[ATTENTION]  # fmt: skip
    np.testing.assert_array_equal(joined, [*expected, 0.75])


def test_layers_are_joined_along_the_tokens():
    one = part(7, 8, version=1, attention=[[0.1, 0.2], [0.3, 0.4]])
    joined = joined_fields([one, part(9, version=1, attention=[[0.5, 0.6]])])
    assert joined[ATTENTION].shape == (3, 2)


def test_without_capture_there_is_no_attention():
    assert ATTENTION not in joined_fields([part(7, version=1)])


def test_new_weights_wait_for_the_probes_of_what_has_ended():
    async def run():
        gate, settled = ResponseGate(), asyncio.Event()

        async def settle():
            await gate.settle(lambda _: asyncio.sleep(0))
            settled.set()

        gate.ended("a")
        task = asyncio.create_task(settle())
        await asyncio.sleep(0.1)
        assert not settled.is_set()
        gate.scored("a")
        gate.scored("unknown")
        await asyncio.wait_for(task, 60)

    asyncio.run(run())


def test_a_request_that_reaches_the_engine_late_is_aborted_too():
    async def run():
        gate, aborted, in_engine = ResponseGate(), [], asyncio.Event()

        async def decode(name):
            async with gate.decoding(name):
                await in_engine.wait()

        async def abort(names):
            aborted.extend(names)
            if len(aborted) == 3:  # the first two came before it was there
                in_engine.set()

        decoding = asyncio.create_task(decode("r"))
        await asyncio.sleep(0)
        await asyncio.wait_for(gate.settle(abort), 60)
        await decoding
        assert aborted == ["r"] * 3

    asyncio.run(run())


def test_responses_wait_while_the_gate_is_closed():
    async def run():
        gate, entered = ResponseGate(), []

        async def decode():
            async with gate.decoding("r"):
                entered.append("r")

        await gate.settle(lambda _: asyncio.sleep(0))
        late = asyncio.create_task(decode())
        await asyncio.sleep(0.05)
        assert entered == []
        gate.open()
        await asyncio.wait_for(late, 60)
        assert entered == ["r"]

    asyncio.run(run())
