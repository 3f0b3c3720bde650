"""What the responses to a prompt share is made once, and is what veRL makes for each."""

import asyncio
from types import SimpleNamespace

import pytest
import torch
import transfer_queue
from tensordict import NonTensorData, NonTensorStack, TensorDict
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.utils.model import extract_multi_modal_inputs

from vapo_verl.rollout.engine_inputs import PromptImages
from vapo_verl.rollout.prompts import (
    PIXELS_OF,
    PREPARED,
    PromptPixels,
    clear_prompts_except,
    open_prompt,
    prompt_uid,
    shared_prompt,
    without_images,
)

UID = "000001-00000"


async def test_a_result_is_made_once_and_shared():
    made = []

    async def make():
        await asyncio.sleep(0)
        made.append(1)
        return object()

    with open_prompt(UID) as prompt:
        results = await asyncio.gather(*(shared_prompt(UID).once("x", make) for _ in range(5)))
        assert len(made) == 1 and len(set(map(id, results))) == 1
        assert prompt.result("x") is results[0]
    assert shared_prompt(UID) is not prompt and not shared_prompt(UID).is_shared


async def test_an_error_is_that_of_all_responses_and_no_result():
    async def fail():
        raise ValueError("row 3: no image")

    with open_prompt(UID) as prompt:
        for _ in range(2):
            with pytest.raises(ValueError, match="row 3"):
                await prompt.once("x", fail)
        assert prompt.result("x") is prompt.result("y") is None


async def test_a_cancelled_response_leaves_the_result_to_the_others():
    started = asyncio.Event()

    async def make():
        started.set()
        await asyncio.sleep(0.01)
        return 5

    with open_prompt(UID) as prompt:
        first = asyncio.create_task(prompt.once("x", make))
        await started.wait()
        first.cancel()
        assert await prompt.once("x", make) == 5


async def test_siblings_are_prepared_once_and_their_images_are_sent_once(
    run_loop, dataset, server, processor, monkeypatch
):
    row = {**dataset[0], "uid": UID}
    alone = [await run_loop(row, "vapo.anchors.gate=always", session_id=i) for i in range(2)]
    runs = []
    call = type(processor).__call__  # what plays the server calls its image processor only

    def counted(self, *args, **kwargs):
        runs.append(kwargs["images"])
        return call(self, *args, **kwargs)

    monkeypatch.setattr(type(processor), "__call__", counted)
    with open_prompt(UID) as prompt:
        together = [await run_loop(row, "vapo.anchors.gate=always", session_id=i) for i in range(2)]
        assert prompt.result(PREPARED).seconds > 0
    assert len(runs) == 1
    assert all(request["image_data"] == PromptImages(key=UID) for request in server.requests)
    assert list(server.opened) == [UID]
    for one, other in zip(alone, together, strict=True):
        assert one.response_ids == other.response_ids
        assert one.extra_fields["vapo"]["anchors"] == other.extra_fields["vapo"]["anchors"]


async def test_the_model_reads_what_verl_computes_for_each_response(run_loop, dataset, processor):
    row = {**dataset[0], "uid": UID}
    with open_prompt(UID) as prompt:
        output = await run_loop(row)
        ours = prompt.result(PREPARED).model_inputs
    worker = SimpleNamespace(
        processor=processor, tokenizer=processor.tokenizer, _get_mm_processor_kwargs=lambda _: {}
    )
    ids = torch.tensor([*output.prompt_ids, *output.response_ids])
    verls = AgentLoopWorker._compute_multi_modal_inputs(worker, output, ids)
    for inputs in (verls, ours.plain):
        assert inputs.pop("mm_token_type_ids") is not None  # veRL asks whether there are any
    assert ours.pixels is not None
    found, wanted = extract_multi_modal_inputs([ours]), extract_multi_modal_inputs([verls])
    assert found.keys() == wanted.keys() == {"pixel_values", "image_grid_thw", "images_seqlens"}
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


async def test_pixels_are_fetched_once_for_all_responses_of_a_prompt(
    run_loop, dataset, monkeypatch
):
    with open_prompt(UID) as prompt:
        await run_loop({**dataset[0], "uid": UID})
        inputs = prompt.result(PREPARED).model_inputs
    fetched = []

    def get(keys, partition_id, select_fields):
        fetched.append((keys, partition_id, select_fields))
        return {"pixels": [inputs.pixels.to_plain() for _ in keys]}

    monkeypatch.setattr(transfer_queue, "kv_batch_get", get)
    grid = {"image_grid_thw": inputs.plain["image_grid_thw"]}
    rows = [{**grid, PIXELS_OF: UID}, {}, {**grid, PIXELS_OF: UID}]  # the second is padding
    column = NonTensorStack.from_list([NonTensorData(row) for row in rows])
    data = PromptPixels().join(TensorDict({"multi_modal_inputs": column}, batch_size=[3]))
    assert fetched == [([UID], "prompts", ["pixels"])]
    found = extract_multi_modal_inputs(data["multi_modal_inputs"])
    assert torch.equal(found["pixel_values"], torch.cat([inputs.pixels.pixel_values()] * 2))
    assert found["image_grid_thw"].shape == (2, 3)
    [micro] = data[2:].get("multi_modal_inputs")
    assert "pixel_values" in getattr(micro, "data", micro)


def test_rows_without_images_are_left_as_they_are():
    column = NonTensorStack.from_list([NonTensorData({})])
    data = TensorDict({"multi_modal_inputs": column}, batch_size=[1])
    assert PromptPixels().join(data) is data
    assert PromptPixels().join(TensorDict({}, batch_size=[1])).is_empty()


def test_pixels_are_fetched_once_for_all_passes_of_a_step(monkeypatch):
    plain = {"mean": [0.0], "std": [1.0], "num_frames": 2, "merge_size": 1}
    fetched = []

    def get(keys, partition_id, select_fields):
        fetched.extend(keys)
        patches = [torch.full((1, 1, 2, 2), int(key), dtype=torch.uint8) for key in keys]
        return {"pixels": [{"patches": each, **plain} for each in patches]}

    monkeypatch.setattr(transfer_queue, "kv_batch_get", get)
    pixels = PromptPixels()
    for step in (["1", "2"], ["2", "3"], ["1", "2", "3"]):  # a rank may get other rows in a pass
        assert [int(one.patches.max()) for one in pixels.of(step).values()] == [*map(int, step)]
    assert fetched == ["1", "2", "3"]
    pixels.of(["4"])  # of the next step: the others are forgotten
    pixels.of(["1"])
    assert fetched == ["1", "2", "3", "4", "1"]


def test_prompts_are_cleared_but_for_those_in_flight(monkeypatch):
    keys = [prompt_uid(step, 0) for step in (1, 2, 3)]
    cleared = []
    monkeypatch.setattr(transfer_queue, "kv_list", lambda name: {name: {key: {} for key in keys}})
    monkeypatch.setattr(transfer_queue, "kv_clear", lambda keys, partition_id: cleared.extend(keys))
    clear_prompts_except({keys[0], keys[2]})
    assert cleared == [keys[1]]


def test_messages_travel_without_their_images():
    messages = [
        {"role": "system", "content": "Look."},
        {
            "role": "user",
            "content": [{"type": "image", "image": b"..."}, {"type": "text", "text": "?"}],
        },
    ]
    assert without_images(messages) == [
        messages[0],
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]},
    ]
    assert messages[1]["content"][0]["image"] == b"..."
