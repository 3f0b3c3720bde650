"""The state between the scheduler's view of a batch and the layers that record it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vapo_verl.attention import capture
from vapo_verl.attention.backends.recording import RecordingBuilder, RecordingImpl
from vapo_verl.attention.capture import NUM_STEPS, Capture, OverheadMeter
from vapo_verl.attention.settings import Settings


class Layer(RecordingImpl):
    logits_soft_cap = 0
    alibi_slopes = None
    sinks = None


def request(request_id, *spans):
    position = SimpleNamespace(extract_embeds_range=lambda: [(a, b - 1) for a, b in spans])
    feature = SimpleNamespace(modality="image", mm_position=position)
    return SimpleNamespace(req_id=request_id, mm_features=[feature] if spans else [])


class Engine:
    """A capture, and the batch that a runner would hold."""

    def __init__(self, **settings):
        self.rows = []
        self.layers = {index: Layer() for index in range(6)}
        self.capture = Capture(
            Settings(**{"max_spans": 3, **settings}),
            self.layers,
            max_rows=4,
            dtype=torch.float32,
            device=torch.device("cpu"),
            row_ids=lambda: self.rows,
        )

    def step(self, rows, new=(), finished=(), ratio=0.0):
        """One engine step; ratio [layers, rows] is what the layers write."""
        scheduled = SimpleNamespace(
            finished_req_ids=set(finished),
            scheduled_new_reqs=list(new),
            total_num_scheduled_tokens=len(rows),
        )
        self.capture.begin_step(scheduled)
        self.rows = list(rows)
        self.capture.begin_forward()
        self.capture.ratio[:, : len(rows)] = torch.as_tensor(ratio)
        return self.capture.end_forward()

    def spans(self):
        return [[s for s in row if s != [0, 0]] for row in self.capture.spans.tolist()]


def test_spans_follow_the_rows():
    engine = Engine()
    engine.step(["a", "b"], new=[request("a", (1, 4)), request("b", (2, 3), (5, 9))])
    assert engine.spans()[:2] == [[[1, 4]], [[2, 3], [5, 9]]]
    engine.step(["b", "c"], new=[request("c")], finished=["a"])
    assert engine.spans()[:2] == [[[2, 3], [5, 9]], []]


def test_a_preempted_request_keeps_its_spans():
    engine = Engine()
    engine.step(["a", "b"], new=[request("a", (1, 4)), request("b", (2, 3))])
    engine.step(["b"])
    engine.step(["b", "a"])  # scheduled again, not new
    assert engine.spans()[:2] == [[[2, 3]], [[1, 4]]]


def test_an_id_that_comes_back_with_another_prompt():
    engine = Engine()
    engine.step(["a"], new=[request("a", (1, 4))])
    engine.step(["a"], new=[request("a", (2, 8))], finished=["a"])
    assert engine.spans()[0] == [[2, 8]]


def test_mean_over_layers_or_each_of_them():
    ratio = torch.tensor([[0.1, 0.2], [0.3, 0.6]])
    new = [request("a", (1, 4)), request("b", (1, 4))]
    mean = Engine(layers=(1, 4)).step(["a", "b"], new, ratio=ratio)
    torch.testing.assert_close(mean, torch.tensor([0.2, 0.4]))
    apart = Engine(layers=(1, 4), per_layer=True).step(["a", "b"], new, ratio=ratio)
    torch.testing.assert_close(apart, ratio.t())


def test_only_the_chosen_layers_record():
    engine = Engine(layers=(4, 1))
    slots = {index: layer.slot for index, layer in engine.layers.items() if layer.capture}
    assert slots == {1: 0, 4: 1}


def test_too_many_spans_are_marked_and_counted_and_said_once(monkeypatch):
    said = []
    monkeypatch.setattr(capture.logger, "warning", lambda text, *values: said.append(text % values))
    engine = Engine(max_spans=1)
    many = [request(name, (1, 2), (4, 5)) for name in "ab"]
    engine.step(["a", "b", "c"], new=[*many, request("c", (1, 2))])
    assert engine.spans()[:3] == [[[-1, -1]], [[-1, -1]], [[1, 2]]]
    assert engine.capture.num_without_answer == 2
    assert len(said) == 1 and "max_spans=1" in said[0]
    assert "vapo.attention.max_spans" in said[0] and "engine_args()" in said[0]


def test_a_dummy_run_leaves_the_batch_alone():
    engine = Engine()
    engine.step(["a"], new=[request("a", (1, 4))])
    engine.rows = ["unknown"]
    engine.capture.begin_forward()
    assert engine.spans()[0] == [[1, 4]]


def test_a_request_the_scheduler_never_announced_has_no_answer():
    engine = Engine()
    engine.step(["stranger"])
    assert engine.spans()[0] == [[-1, -1]]


def test_layers_of_another_backend_are_named():
    with pytest.raises(ValueError, match="layer 1 runs SimpleNamespace"):
        Capture(
            Settings(layers="all"),
            {0: Layer(), 1: SimpleNamespace()},
            max_rows=1,
            dtype=torch.float32,
            device=torch.device("cpu"),
            row_ids=list,
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [("logits_soft_cap", 30.0), ("alibi_slopes", torch.ones(2)), ("sinks", torch.zeros(2))],
)
def test_attention_that_is_more_than_a_softmax_is_refused(name, value):
    layer = Layer()
    setattr(layer, name, value)
    with pytest.raises(ValueError, match=name):
        layer.check_recordable(torch.float32)


def test_a_builder_announces_the_batch_and_keeps_its_rows():
    class Base:
        def build(self, common_prefix_len, common_attn_metadata):
            return SimpleNamespace()

    class Builder(RecordingBuilder, Base):
        pass

    engine, builder = Engine(), Builder()
    common = SimpleNamespace(query_start_loc=1, seq_lens=2, block_table_tensor=3)
    assert builder.build(0, common).rows.seq_lens == 2  # vLLM profiles before all is bound
    engine.capture.bind([SimpleNamespace(), builder])
    rows = builder.build(0, common).rows
    assert (rows.query_start_loc, rows.seq_lens, rows.block_table) == (1, 2, 3)
    with pytest.raises(ValueError, match="no metadata builder"):
        engine.capture.bind([SimpleNamespace()])


def test_the_meter_counts_pure_decode_steps_only_and_reports_once():
    shares = []
    meter = OverheadMeter(shares.append)
    for _ in range(3):
        with meter.step(timed=False), meter.recording():
            pass
    for _ in range(2 * NUM_STEPS):
        with meter.step(timed=True), meter.recording():
            sum(range(200))
    assert len(shares) == 1
    assert 0 < shares[0] < np.inf
