"""A failed response is reported once, with whether it is the row's fault or the system's."""

import asyncio
import concurrent.futures
import errno
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import transfer_queue
import zmq
from PIL import Image, UnidentifiedImageError
from tensordict import TensorDict
from verl.trainer.ppo.v1 import agent_loop_tq
from verl.utils.tensordict_utils import assign_non_tensor_data, get_tensordict
from verl.workers.rollout.replica import TokenOutput
from vllm.v1.engine.exceptions import EngineDeadError

from vapo_verl.rollout import agent_loop_worker
from vapo_verl.rollout.agent_loop_worker import (
    DONE_FIELD,
    FAILURE_TAG,
    REASON_TAG,
    ResponseFailed,
    VapoAgentLoopManager,
    VapoAgentLoopWorker,
    failure_kind,
    reason_of,
)
from vapo_verl.rollout.prober import CUT_SHORT, OneServerClient, ServerFailed
from vapo_verl.rollout.prompts import OpenPrompt

ROW = [
    UnidentifiedImageError("cannot identify image file 'a.png'"),
    FileNotFoundError(errno.ENOENT, "No such file", "a.png"),
    ValueError("Prompt length (400) leaves no room to generate"),
    KeyError("ground_truth"),
    RuntimeError("the reward function does not know this answer"),
    ZeroDivisionError("division by zero"),
]
SYSTEM = [
    ServerFailed("EngineDeadError: EngineCore encountered an issue"),
    ray.exceptions.ActorDiedError(),
    ray.exceptions.ActorUnavailableError("unavailable", b"\0" * 16),
    ray.exceptions.OutOfMemoryError("killed by the raylet"),
    ray.exceptions.ObjectLostError("id", None, ""),
    TimeoutError("no answer"),
    MemoryError(),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EMFILE, "Too many open files"),
    RuntimeError("can't start new thread"),
    zmq.ZMQError(zmq.ETERM),
    concurrent.futures.BrokenExecutor(),
    asyncio.CancelledError(),
]


def from_another_process(error: Exception) -> ray.exceptions.RayTaskError:
    return ray.exceptions.RayTaskError("f", "traceback", error)


@pytest.mark.parametrize("error", ROW, ids=lambda e: type(e).__name__)
def test_faults_of_the_row(error):
    assert failure_kind(error) == failure_kind(from_another_process(error)) == "row"


@pytest.mark.parametrize("error", SYSTEM, ids=lambda e: type(e).__name__)
def test_faults_of_the_system(error):
    assert failure_kind(error) == "system"
    if isinstance(error, Exception):
        assert failure_kind(from_another_process(from_another_process(error))) == "system"


def test_a_reason_is_one_line_with_the_first_error():
    error = from_another_process(ValueError("first line\nsecond line"))
    assert reason_of(error) == "ValueError: first line"
    assert reason_of(KeyError()) == "KeyError: "
    assert reason_of(OSError("no file caf\udce9")) == "OSError: no file caf\\udce9"
    assert len(reason_of(ValueError("x" * 10_000))) <= 200


class Client:
    """A client whose server does what it is told."""

    def __init__(self, outcome: TokenOutput | Exception) -> None:
        self.outcome = outcome

    async def generate(self, session: str, **request: object) -> TokenOutput:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def generated(outcome):
    prompt = OpenPrompt("session", is_shared=False)
    return asyncio.run(OneServerClient(Client(outcome), prompt).generate("id", prompt_ids=[1]))


@pytest.mark.parametrize("reason", CUT_SHORT)
def test_an_output_that_the_engine_gave_up_is_no_response(reason):
    with pytest.raises(ServerFailed, match=reason):
        generated(TokenOutput(token_ids=[1, 2], stop_reason=reason))


@pytest.mark.parametrize("other", ["video_data", "audio_data"])
def test_a_prompt_with_more_than_images_is_sent_as_it_is(other):
    """The server opens images alone: it would leave the others out."""
    sent = {"prompt_ids": [1], "image_data": ["image"], other: ["other"]}

    class Recorder(Client):
        async def generate(self, session: str, **request: object) -> TokenOutput:
            assert request == sent
            return await super().generate(session, **request)

    client = Recorder(TokenOutput(token_ids=[1], stop_reason="completed"))
    prompt = OpenPrompt("session", is_shared=True)
    asyncio.run(OneServerClient(client, prompt).generate("id", **sent))


@pytest.mark.parametrize("reason", ["completed", None])
def test_a_finished_output_passes(reason):
    assert generated(TokenOutput(token_ids=[1], stop_reason=reason)).token_ids == [1]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("prompt too long"), "row"),
        (EngineDeadError(), "system"),
        (RuntimeError("CUDA error: an illegal memory access"), "system"),
        (AssertionError(), "system"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_server_may_refuse_a_prompt_and_fails_at_the_rest(error, kind):
    with pytest.raises(Exception) as raised:
        generated(from_another_process(error).as_instanceof_cause())
    assert failure_kind(raised.value) == kind


class Loop(VapoAgentLoopWorker):
    """A worker whose agent loop fails, without the models that a real one loads."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self._in_flight, self._logged = error, {}, set()


@pytest.fixture
def reports(monkeypatch):
    """Tags that workers have put, and the error of their agent loop."""
    tags = []

    async def put(**entry):
        tags.append(entry)

    async def run(self, *_, **__):
        if self.error is not None:
            raise self.error

    monkeypatch.setattr(transfer_queue, "async_kv_put", put)
    monkeypatch.setattr(VapoAgentLoopWorker.__bases__[0], "_run_agent_loop", run)
    return tags


def run_loop(worker: Loop, *, validate: bool = False, **fields: object) -> None:
    row = {"uid": "000001-00002", "session_id": 4, **fields}
    asyncio.run(worker._run_agent_loop({}, {"validate": validate}, **row))


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize(("error", "kind"), [(KeyError("x"), "row"), (MemoryError(), "system")])
def test_a_failure_is_an_entry_under_the_key_of_its_response(reports, error, kind, validate):
    with pytest.raises(ResponseFailed, match="000001-00002_4_0"):
        run_loop(Loop(error), validate=validate)
    (entry,) = reports
    assert entry["key"] == "000001-00002_4_0"
    assert entry["partition_id"] == ("val" if validate else "train")
    assert entry["tag"][FAILURE_TAG] == kind
    assert entry["tag"][REASON_TAG] == reason_of(error)


def test_a_response_that_comes_is_no_failure(reports):
    run_loop(Loop(None))
    assert reports == []


def test_a_response_that_is_there_is_not_made_again(reports):
    run_loop(Loop(KeyError("it would fail")), **{DONE_FIELD: (0, 4)})
    assert reports == []
    with pytest.raises(ResponseFailed):
        run_loop(Loop(KeyError("it fails")), **{DONE_FIELD: (0, 3)})


class Manager(VapoAgentLoopManager):
    """A manager of three workers that note what they get."""

    def __init__(self) -> None:
        self.rollout_config = SimpleNamespace(n=4, val_kwargs=SimpleNamespace(n=1))
        self.expected, self._asked, self.dispatched = {}, [], 0
        self.got: list[dict[str, object]] = []
        worker = SimpleNamespace(generate_sequences=SimpleNamespace(remote=self.take))
        self.agent_loop_workers = [worker] * 3

    def after_dispatch(self) -> None:
        self.dispatched += 1

    def take(self, batch: TensorDict) -> None:
        for row in range(len(batch)):
            columns = {name: batch[name] for name in batch.keys()}  # noqa: SIM118
            done = columns.get(DONE_FIELD)
            self.got.append(
                {
                    "uid": columns["uid"][row],
                    "image": columns["image"][row],
                    "done": None if done is None else done[row],
                    "step": columns["global_steps"],
                }
            )


def prompts(*uids: str) -> TensorDict:
    columns = {"uid": list(uids), "image": [f"image of {uid}" for uid in uids]}
    batch = get_tensordict({name: np.array(v, dtype=object) for name, v in columns.items()})
    assign_non_tensor_data(batch, "global_steps", 7)
    return batch


def test_lost_responses_are_asked_again_with_the_rows_of_their_prompts(monkeypatch):
    registered = []
    monkeypatch.setattr(transfer_queue, "kv_batch_put", lambda **entry: registered.append(entry))
    monkeypatch.setattr(ray, "get", lambda asked: asked)
    manager = Manager()
    manager.generate_sequences(prompts("a", "b", "c"))
    manager.got.clear()
    done = {"c": [], "a": [0, 3]}
    for dispatched in (2, 3):  # the second time the server has died again
        manager.ask_again("train", done)
        assert manager.dispatched == dispatched
        assert manager.got == [
            {"uid": "a", "image": "image of a", "done": (0, 3), "step": 7},
            {"uid": "c", "image": "image of c", "done": (), "step": 7},
        ]
        manager.got.clear()
    assert manager.expected == {"a": 4, "b": 4, "c": 4}
    assert [(entry["keys"], entry["partition_id"]) for entry in registered] == 2 * [
        (["a", "c"], "train")
    ]
    pending = {"is_prompt": True, "status": "pending", "global_steps": 7}
    assert registered[0]["tags"] == [pending, pending]


def test_rows_are_kept_until_their_prompts_are_settled(monkeypatch):
    monkeypatch.setattr(ray, "get", lambda asked: asked)
    manager = Manager()
    for uid in "ab":
        manager.generate_sequences(prompts(uid))
        manager.expected.clear()  # the replay buffer has its responses
    monkeypatch.setattr(transfer_queue, "kv_batch_put", lambda **_: None)
    manager.got.clear()
    manager.ask_again("train", {"a": [], "b": []})
    assert [row["uid"] for row in manager.got] == ["b"]


def test_errors_of_one_cause_are_logged_once(reports, caplog):
    worker = Loop(KeyError("x"))
    agent_loop_tq.logger.addFilter(agent_loop_worker.ReportedFilter())
    for _ in range(40):
        with pytest.raises(ResponseFailed):
            run_loop(worker)
        agent_loop_tq.logger.error("as veRL does", exc_info=ResponseFailed("key"))
    failures = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(failures) == 1
    assert len(reports) == 40


class WithoutARun(VapoAgentLoopWorker):
    def __init__(self, processor):
        self.processor, self.tokenizer = processor, processor.tokenizer


@pytest.mark.parametrize("text", ["<|image_pad|> and <|image_pad|>", "<|placeholder|>", "red"])
def test_text_that_spells_a_token_out_is_no_image(text, processor):
    """Prompt and response become text again on the way to the actor's pixels."""
    images = [Image.new("RGB", (56, 56), colour) for colour in ("red", "blue")]
    output = SimpleNamespace(
        multi_modal_data={"images": images},
        mm_processor_kwargs={},
        prompt=OpenPrompt("nothing is prepared", is_shared=False),
    )
    ids = processor.tokenizer.encode(text, split_special_tokens=True, return_tensors="pt")
    inputs = WithoutARun(processor)._compute_multi_modal_inputs(output, ids)
    expected = processor.image_processor(images=images, return_tensors="pt")
    assert inputs["pixel_values"].equal(expected["pixel_values"])
    assert inputs["image_grid_thw"].equal(expected["image_grid_thw"])
    assert inputs["images_seqlens"].tolist() == [16, 16]
