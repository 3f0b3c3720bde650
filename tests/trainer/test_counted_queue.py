"""The counted replay buffer over a real TransferQueue."""

import asyncio

import pytest
import ray
import torch
import transfer_queue
from omegaconf import OmegaConf
from tensordict import TensorDict

from vapo_verl.rollout.agent_loop_worker import FAILURE_TAG, REASON_TAG
from vapo_verl.trainer.replay_buffer import FAILED, CountedReplayBuffer, ResponsesFailed


@pytest.fixture(scope="module")
def queue():
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    transfer_queue.init()
    yield
    transfer_queue.close()
    ray.shutdown()


def put_group(uid: str, letters: str, status: str) -> None:
    """A group as agent loops leave it: `.` is a response, another letter the kind of a failure."""
    kinds = {"r": "row", "s": "system"}
    transfer_queue.kv_batch_put(
        keys=[uid],
        partition_id="train",
        tags=[{"is_prompt": True, "status": "pending", "global_steps": 1}],
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
