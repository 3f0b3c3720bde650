"""Values of unfinished requests do not keep the engine's messages in memory."""

from types import SimpleNamespace

import numpy as np
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from tests.core_requests import core_request
from vapo_verl.patches.upstream import join_chunks

LENGTH = 10


def request(name):
    sampling = SamplingParams(
        detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, max_tokens=LENGTH
    )
    return core_request(name, sampling)


def message(names, step):
    """What an engine says of a step, as it arrives in the client's process."""
    outputs = [
        EngineCoreOutput(
            request_id=name,
            new_token_ids=[step],
            routed_experts=np.array([step + 0.5], dtype=np.float32),
            finish_reason=FinishReason.LENGTH if step == LENGTH - 1 else None,
        )
        for name in names
    ]
    sent = MsgpackEncoder().encode(EngineCoreOutputs(outputs=outputs))
    return MsgpackDecoder(EngineCoreOutputs).decode([bytearray(part) for part in sent])


def test_joined_values_are_the_requests_and_no_views():
    processor = OutputProcessor(tokenizer=None, log_stats=False)
    names = ["a", "b"]
    for name in names:
        processor.add_request(request(name), prompt=None)
    engine = SimpleNamespace(output_processor=processor)
    finished = []
    for step in range(LENGTH):
        found = processor.process_outputs(message(names, step).outputs)
        finished += found.request_outputs
        states = list(processor.request_states.values())
        before = [len(state.routed_experts_chunks) for state in states]
        join_chunks(engine, longest=4)
        for number, state in zip(before, states, strict=True):
            assert len(state.routed_experts_chunks) == (1 if number > 4 else number)
    expected = np.arange(LENGTH, dtype=np.float32) + 0.5
    assert len(finished) == len(names)
    for output in finished:
        assert np.array_equal(output.outputs[0].routed_experts, expected)


def test_a_joined_array_has_memory_of_its_own():
    processor = OutputProcessor(tokenizer=None, log_stats=False)
    processor.add_request(request("a"), prompt=None)
    for step in range(3):
        processor.process_outputs(message(["a"], step).outputs)
    (state,) = processor.request_states.values()
    assert all(chunk.base is not None for chunk in state.routed_experts_chunks)
    join_chunks(SimpleNamespace(output_processor=processor), longest=1)
    (chunk,) = state.routed_experts_chunks
    assert chunk.base is None
