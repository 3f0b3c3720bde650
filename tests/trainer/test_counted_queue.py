"""The counted replay buffer over a real TransferQueue."""

import asyncio

import pytest
import ray
import torch
import transfer_queue
from omegaconf import OmegaConf
from tensordict import TensorDict

from vapo_verl.rollout.agent_loop_worker import FAILURE_TAG, REASON_TAG
from vapo_verl.rollout.prompts import PIXELS_OF, PROMPTS
from vapo_verl.rollout.transfer import clear, put_rows, read_rows
from vapo_verl.trainer.replay import SavedBuffer, SavedStep, write_step
from vapo_verl.trainer.replay_buffer import (
    FAILED,
    CountedReplayBuffer,
    CountedReplayBufferAsync,
    ResponsesFailed,
)


@pytest.fixture(scope="module")
def queue():
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    transfer_queue.init()
    yield
    transfer_queue.close()
    ray.shutdown()


def put_group(uid: str, letters: str, status: str, step: int = 1) -> None:
    """A group as agent loops leave it: `.` is a response, another letter the kind of a failure."""
    kinds = {"r": "row", "s": "system"}
    transfer_queue.kv_batch_put(
        keys=[uid],
        partition_id="train",
        tags=[{"is_prompt": True, "status": "pending", "global_steps": step}],
    )
    for session, letter in enumerate(letters):
        key = f"{uid}_{session}_0"
        if letter == ".":
            fields = TensorDict({"responses": torch.ones(1, 3)}, batch_size=1)
            transfer_queue.kv_batch_put(
                keys=[key], partition_id="train", fields=fields, tags=[{"status": "success"}]
            )
        else:
            tag = {"status": "failure", FAILURE_TAG: kinds[letter], REASON_TAG: "KeyError: x"}
            asyncio.run(transfer_queue.async_kv_put(key=key, partition_id="train", tag=tag))
    transfer_queue.kv_batch_put(keys=[uid], partition_id="train", tags=[{"status": status}])


def sampled(groups: dict[str, str]):
    buffer = CountedReplayBuffer(
        trainer_mode="sync",
        trainer_config=OmegaConf.create({}),
        max_off_policy_threshold=None,
        max_off_policy_strategy="drop",
        sampler_kwargs=OmegaConf.create({}),
    )
    buffer.watch(interval_s=0.05, max_failed_fraction=0.3, expected=dict.fromkeys(groups, 4))
    for uid, letters in groups.items():
        put_group(uid, letters, "finished" if letters == "...." else "failure")
    return buffer.sample(1, "train", len(groups))


def test_failures_leave_the_queue_and_the_rest_is_there(queue):
    batch, metrics = sampled({"a": "....", "b": "..r."})
    assert sorted(batch.keys) == ["a_0_0", "a_1_0", "a_2_0", "a_3_0", "b_0_0", "b_1_0", "b_3_0"]
    assert metrics[FAILED] == 1
    data = transfer_queue.kv_batch_get(
        keys=batch.keys, partition_id="train", select_fields=["responses"]
    )
    assert len(data["responses"]) == 7
    assert sorted(transfer_queue.kv_list()["train"]) == sorted(batch.keys)
    transfer_queue.kv_clear(keys=batch.keys, partition_id="train")


def test_a_failure_of_the_system_is_no_batch(queue):
    with pytest.raises(ResponsesFailed, match=r"1 of 8 responses of step 1 failed: 1 x KeyError"):
        sampled({"c": "....", "d": "..s."})


@pytest.fixture
def asynchronous(queue):
    """An asynchronous buffer over the given groups: uid -> (letters, step, status)."""

    def make(groups: dict[str, tuple[str, int, str]], threshold=8):
        buffer = CountedReplayBufferAsync(
            trainer_mode="colocate_async",
            trainer_config=OmegaConf.create({}),
            max_off_policy_threshold=threshold,
            max_off_policy_strategy="drop",
            sampler_kwargs=OmegaConf.create({}),
            refill_fn=lambda number: asked.append(number),
        )
        expected.update(dict.fromkeys(groups, 4))
        buffer.watch(interval_s=0.05, max_failed_fraction=0.5, expected=expected)
        for uid, (letters, step, status) in groups.items():
            put_group(uid, letters, status, step)
        return buffer

    expected: dict[str, int] = {}
    asked: list[int] = []
    make.expected, make.asked = expected, asked
    yield make
    left = transfer_queue.kv_list().get("train", {})
    if left:
        transfer_queue.kv_clear(keys=list(left), partition_id="train")


def test_prompts_in_flight_stay_expected(asynchronous):
    buffer = asynchronous(
        {"e": ("....", 1, "finished"), "f": ("..", 1, "running"), "g": ("....", 2, "finished")}
    )
    batch, _ = buffer.sample(2, "train", 1)
    assert {key.split("_")[0] for key in batch.keys} == {"e"}
    assert asynchronous.expected == {"f": 4, "g": 4}


def test_the_oldest_prompts_come_first_and_then_those_at_the_first_places(asynchronous):
    names = ["000002-00000", "000001-00003", "000001-00001", "000001-00002"]
    buffer = asynchronous({name: ("....", int(name[:6]), "finished") for name in names})
    batch, _ = buffer.sample(2, "train", 2)
    uids = {key.split("_")[0] for key in batch.keys}
    assert uids == {"000001-00001", "000001-00002"}


def test_a_group_with_failures_of_its_row_trains_with_the_rest(asynchronous):
    buffer = asynchronous({"h": ("....", 1, "finished"), "i": (".rr.", 1, "failure")})
    batch, metrics = buffer.sample(1, "train", 2)
    assert sorted(batch.keys) == ["h_0_0", "h_1_0", "h_2_0", "h_3_0", "i_0_0", "i_3_0"]
    assert metrics[FAILED] == 2
    assert asynchronous.asked == []  # veRL would drop the group and ask another prompt


def test_a_failure_of_the_system_ends_an_asynchronous_step_too(asynchronous):
    buffer = asynchronous({"j": ("..s.", 1, "failure")})
    with pytest.raises(ResponsesFailed, match="1 of 4 responses of step 1 failed"):
        buffer.sample(1, "train", 1)


def test_a_stale_group_is_dropped_and_no_longer_expected(asynchronous):
    buffer = asynchronous({"k": ("....", 1, "finished"), "l": ("....", 5, "finished")}, threshold=2)
    batch, _ = buffer.sample(5, "train", 1)
    assert {key.split("_")[0] for key in batch.keys} == {"l"}
    assert asynchronous.expected == {}
    assert asynchronous.asked == [1]


def test_saved_rollouts_come_back_as_they_were(queue, tmp_path):
    """Rows of all kinds of columns: into the queue, to the disk, and into the queue again."""
    rows = [
        {
            "responses": torch.arange(length),
            "position_ids": torch.arange(4 * length).view(4, length),
            "visual_attention": torch.full((length,), torch.nan),
            "multi_modal_inputs": {"image_grid_thw": torch.tensor([[1, 2, 2]]), PIXELS_OF: "9-0"},
            "extra_fields": {"vapo": {"anchors": [{"label": True}]}},
            "claims": [{"text": "a", "label": True}] * length,
            "reward_model": {"ground_truth": "7"},
            "num_turns": 2,
        }
        for length in (3, 5)
    ]
    keys, tags = ["9-0_0_0", "9-0_1_0"], [{"status": "success", "seq_len": 7}] * 2
    pixels = {"pixels": {"patches": torch.ones(4, dtype=torch.uint8), "mean": [0.5]}, "grid": None}
    put_rows(keys, "train", rows, tags)
    put_rows(["9-0"], PROMPTS, [pixels])
    before = [read_rows(keys, "train"), read_rows(["9-0"], PROMPTS)]
    saved = SavedStep(
        step=4,
        keys=keys,
        tags=tags,
        rows=before[0],
        prompts=dict(zip(["9-0"], before[1], strict=True)),
    )
    write_step(tmp_path, saved, {"vocabulary": 7})
    clear(keys, "train")
    clear(["9-0"], PROMPTS)
    batch, metrics = SavedBuffer(tmp_path, num_tokens=7).sample(1, "train", batch_size=1)
    assert (batch.keys, batch.tags, metrics[FAILED]) == (keys, tags, 0)
    after = [read_rows(keys, "train"), read_rows(["9-0"], PROMPTS)]
    assert repr(after) == repr(before)  # shapes, types and values of tensors among them
    assert [row["responses"].tolist() for row in after[0]] == [[0, 1, 2], [0, 1, 2, 3, 4]]
    assert after[0][1]["position_ids"].shape == (4, 5)
    clear(keys, "train")
    clear(["9-0"], PROMPTS)
