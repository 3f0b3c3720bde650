"""Values of the worker's rows on the outputs of the right requests."""

from types import SimpleNamespace

import numpy as np

from vapo_verl.attention.scheduler import PassesVisualAttention
from vapo_verl.attention.settings import Settings

VALUES = np.array([0.1, 0.2, 0.3], dtype=np.float32)


class Upstream:
    """Finishes every request, as a real scheduler may within the update."""

    def __init__(self, requests, new_tokens, on_request=False):
        self.requests = requests
        self.new_tokens = new_tokens
        config = Settings(on_request=on_request).to_additional_config()
        self.vllm_config = SimpleNamespace(additional_config=config)

    def update_from_output(self, scheduler_output, model_runner_output):
        outputs = [
            SimpleNamespace(request_id=name, new_token_ids=tokens, routed_experts=None)
            for name, tokens in self.new_tokens.items()
        ]
        self.requests.clear()
        return {0: SimpleNamespace(outputs=outputs)}


class Scheduler(PassesVisualAttention, Upstream):
    pass


def request(**extra_args):
    return SimpleNamespace(sampling_params=SimpleNamespace(extra_args=extra_args or None))


def passed_on(scheduler, values=VALUES):
    result = SimpleNamespace(req_ids=["a", "b", "c"])
    if values is not None:
        result.visual_attention = values
    outputs = scheduler.update_from_output(None, result)[0].outputs
    return {o.request_id: o.routed_experts for o in outputs if o.routed_experts is not None}


def test_each_request_gets_its_own_row_whatever_the_order():
    requests = {name: request() for name in "abc"}
    got = passed_on(Scheduler(requests, {"c": [7], "a": [8]}))
    assert {name: values.tolist() for name, values in got.items()} == {
        "c": [VALUES[2]],
        "a": [VALUES[0]],
    }


def test_a_chunk_of_a_prompt_has_no_token_and_no_value():
    got = passed_on(Scheduler({name: request() for name in "abc"}, {"a": [], "b": [5]}))
    assert list(got) == ["b"]


def test_a_row_of_layers_stays_a_row():
    layers = np.arange(6, dtype=np.float32).reshape(3, 2)
    got = passed_on(Scheduler({"b": request()}, {"b": [1]}), layers)
    assert got["b"].tolist() == [[2, 3]]


def test_on_request_only_those_that_ask():
    requests = {"a": request(), "b": request(visual_attention=True), "c": request(other=1)}
    got = passed_on(Scheduler(requests, {"a": [1], "b": [1], "c": [1]}, on_request=True))
    assert list(got) == ["b"]


def test_a_step_without_a_forward_passes_nothing():
    assert passed_on(Scheduler({"a": request()}, {"a": [1]}), values=None) == {}
