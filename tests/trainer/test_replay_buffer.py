"""Reading the replay buffer, in every container that TransferQueue returns."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transfer_queue
from hypothesis import given
from hypothesis import strategies as st
from tensordict import NonTensorData, NonTensorStack
from transfer_queue import KVBatchMeta

import vapo_verl
from tests.sample_records import sample_record
from vapo_verl.rollout.agent_loop_worker import FAILURE_TAG, REASON_TAG
from vapo_verl.rollout.transfer import column_values, read_columns
from vapo_verl.trainer.replay_buffer import (
    FAILED,
    MAX_RESTARTS,
    CountedReplayBuffer,
    CountedReplayBufferAsync,
    ResponsesFailed,
    count_responses,
    fit_width,
    forget_trained,
    read_responses,
    request_lost,
    spread_padding,
)

RECORD = sample_record()


def ragged(*rows):
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


def test_one_module_imports_transfer_queue():
    package = Path(vapo_verl.__file__).parent
    importing = re.compile(r"^\s*(?:import|from) transfer_queue\b", re.MULTILINE)
    found = [p for p in package.rglob("*.py") if importing.search(p.read_text())]
    assert [str(p.relative_to(package)) for p in found] == ["rollout/transfer.py"]


def test_responses_of_a_step_are_typed_and_padded_without_padding_rows(monkeypatch):
    columns = {
        "uid": {"a_0_0": "a", "a_1_0": "a"},
        "extra_fields": {key: {"vapo": RECORD.to_plain()} for key in ("a_0_0", "a_1_0")},
    }

    def get(keys, partition_id, select_fields):
        assert (keys, partition_id) == (["a_0_0", "a_1_0"], "train")
        return {
            **{name: [values[key] for key in keys] for name, values in columns.items()},
            "visual_attention": ragged([0.25, 0.5], [0.75]),
            "response_mask": ragged([1, 1], [1]),
        }

    monkeypatch.setattr(transfer_queue, "kv_batch_get", get)
    batch = KVBatchMeta(
        keys=["a_0_0", "pad_0_0", "a_1_0"],
        tags=[
            {"global_steps": 2},
            {"is_padding": True},
            {"is_padding": False, "global_steps": 3},
        ],
        partition_id="train",
    )
    step = read_responses(batch)
    assert step.keys == ["a_0_0", "a_1_0"]
    assert step.asked_at == [2, 3]
    assert step.group_ids == ["a", "a"]
    assert step.records == [RECORD, RECORD]
    assert step.response_mask.tolist() == [[1, 1], [1, 0]]
    assert step.visual_attention[0].tolist() == [0.25, 0.5]
    assert step.visual_attention[1, 0] == 0.75 and step.visual_attention[1, 1].isnan()


def test_columns_are_read_in_the_order_of_the_keys(monkeypatch):
    def get(keys, partition_id, select_fields):
        return {
            name: np.array([f"{name} of {key}" for key in keys], dtype=object)
            for name in select_fields
        }

    monkeypatch.setattr(transfer_queue, "kv_batch_get", get)
    assert read_columns(("b", "a"), "train", ["index"]) == {"index": ["index of b", "index of a"]}


def test_objects_come_out_the_same_from_every_container():
    rows = [{"a": 1}, {"a": 2}]
    stack = NonTensorStack.from_list([NonTensorData(row) for row in rows])
    array = np.array(rows, dtype=object)
    assert column_values(rows) == column_values(stack) == column_values(array) == rows


def test_ragged_tensors_come_out_row_by_row():
    ragged = torch.nested.as_nested_tensor(
        [torch.tensor([1.0, 2.0]), torch.tensor([3.0])], layout=torch.jagged
    )
    assert [row.tolist() for row in column_values(ragged)] == [[1.0, 2.0], [3.0]]


def test_widths_are_cut_or_filled_with_nan():
    values = torch.tensor([[1.0, 2.0]])
    assert fit_width(values, 1).tolist() == [[1.0]]
    wide = fit_width(values, 3)
    assert wide[0, :2].tolist() == [1.0, 2.0]
    assert wide[0, 2].isnan()


def failure(kind: str, reason: str = "ValueError: bad") -> dict[str, str]:
    return {"status": "failure", FAILURE_TAG: kind, REASON_TAG: reason}


def entries(groups: dict[str, str]) -> tuple[list[str], list[dict[str, str]]]:
    """Keys and tags of groups that are written as `{"a": "..rs"}`: a letter per response, where
    `.` is one that came, `r` a fault of the row, `s` of the system and `-` one that nobody
    reported."""
    made = {".": {"status": "success"}, "r": failure("row"), "s": failure("system", "dead")}
    found = [
        (f"{uid}_{session}_0", made[letter])
        for uid, letters in groups.items()
        for session, letter in enumerate(letters)
        if letter != "-"
    ]
    return [key for key, _ in found], [tag for _, tag in found]


def counted(groups, *, num_groups=None, min_group=2, n=4):
    keys, tags = entries(groups)
    expected = dict.fromkeys(groups, n)
    count = count_responses(keys, tags, expected, num_groups or len(groups), min_group)
    return count, [keys[i] for i in count.kept]


@pytest.mark.parametrize(
    ("groups", "rows", "systems", "kept"),
    [
        ({"a": "....", "b": "...."}, 0, 0, 8),
        ({"a": "...r", "b": "...."}, 1, 0, 7),
        ({"a": "..rr", "b": "...."}, 2, 0, 6),
        ({"a": ".rrr", "b": "...."}, 3, 0, 4),  # one response is no group: it is dropped
        ({"a": "rrrr", "b": "...."}, 4, 0, 4),
        ({"a": "...s", "b": "...."}, 0, 1, 7),
        ({"a": "ssss", "b": "...."}, 0, 4, 4),
        ({"a": "..rs", "b": "s..."}, 1, 2, 5),
        ({"a": "...-", "b": "...."}, 0, 1, 7),
        ({"a": "-..r", "b": "--.."}, 1, 3, 4),
    ],
)
def test_every_response_is_kept_or_accounted_for(groups, rows, systems, kept):
    count, keys = counted(groups)
    assert count.expected == 8
    assert (count.row_failures.total(), count.system_failures.total()) == (rows, systems)
    assert len(keys) == kept
    assert not any(groups[key[0]][int(key[2])] != "." for key in keys)


def test_a_prompt_of_which_nothing_came_is_missing_as_a_whole():
    count, _ = counted({"a": "....", "b": "----"}, num_groups=2)
    assert (count.expected, count.system_failures.total()) == (8, 4)


def test_a_validation_keeps_single_responses():
    _, keys = counted({"a": ".rrr"}, min_group=1)
    assert keys == ["a_0_0"]


def test_a_response_of_several_outputs_counts_once():
    keys = ["a_0_0", "a_0_1", "a_1_0", "a_2_0", "a_2_1"]
    tags = [{}, {}, {}, {}, failure("row")]
    count = count_responses(keys, tags, {"a": 3}, 1)
    assert (count.expected, count.row_failures.total()) == (3, 1)
    assert count.kept == [0, 1, 2]  # what a failed one had written goes with it


class Buffer(CountedReplayBuffer):
    """A buffer whose prompts have ended."""

    def __init__(self, groups: dict[str, str], max_failed_fraction: float = 0.1) -> None:
        self.groups, self.prompt_global_steps = groups, {}
        self.watch(
            interval_s=0.1,
            max_failed_fraction=max_failed_fraction,
            expected=dict.fromkeys(groups, len(next(iter(groups.values())))),
        )


@pytest.fixture
def sampled(monkeypatch):
    """`sampled(buffer, partition)`: what veRL's sample returns, counted; and the cleared keys."""

    def sample(self, global_steps, partition_id, batch_size):
        keys, tags = entries(self.groups)
        return KVBatchMeta(partition_id=partition_id, keys=keys, tags=tags), {"a": 1}

    cleared = []
    monkeypatch.setattr(CountedReplayBuffer.__bases__[0], "sample", sample)
    monkeypatch.setattr(transfer_queue, "kv_clear", lambda keys, partition_id: cleared.extend(keys))

    def run(buffer: Buffer, partition_id: str = "train"):
        batch, metrics = buffer.sample(3, partition_id, len(buffer.groups))
        return batch, metrics, cleared

    return run


def test_a_healthy_step_is_what_verl_sampled(sampled):
    batch, metrics, cleared = sampled(Buffer({"a": "....", "b": "...."}))
    assert (batch.keys, cleared) == (entries({"a": "....", "b": "...."})[0], [])
    assert metrics == {"a": 1, FAILED: 0}


def test_a_row_that_fails_is_left_out_and_counted(sampled, capsys):
    groups = {"a": ".........r", "b": "r........."}
    batch, metrics, cleared = sampled(Buffer(groups))
    assert len(batch.keys) == len(batch.tags) == 18
    assert cleared == ["a_9_0", "b_0_0"]
    assert metrics[FAILED] == 2
    said = capsys.readouterr().out
    assert "WARNING: 2 of 20 responses of step 3 failed and are left out: 2 x ValueError" in said


def test_more_failures_than_allowed_end_the_run(sampled):
    groups = {"a": "........rr", "b": ".........r"}
    with pytest.raises(ResponsesFailed, match=r"3 of 20 .*max_failed_fraction=0.1 of.*: 3 x Val"):
        sampled(Buffer(groups))
    assert len(sampled(Buffer(groups, 0.15))[0].keys) == 17  # as many as allowed are allowed
    with pytest.raises(ResponsesFailed, match="2 of 2 responses of the validation"):
        sampled(Buffer({"a": "r", "b": "r"}), "val")


def test_no_group_that_is_left_ends_the_run_whatever_is_allowed(sampled):
    with pytest.raises(ResponsesFailed):
        sampled(Buffer({"a": ".rrr", "b": "rrrr"}, 1.0))


@pytest.mark.parametrize("groups", [{"a": "...s"}, {"a": "...-"}, {"a": "ssss"}, {"a": "sr-."}])
@pytest.mark.parametrize("partition", ["train", "val"])
def test_one_failure_of_the_system_ends_the_step(sampled, groups, partition):
    with pytest.raises(ResponsesFailed, match=r"of 4 responses of (step 3|the validation) failed"):
        sampled(Buffer(groups, 1.0), partition)


def test_a_failure_of_the_system_is_noticed_while_others_still_run():
    buffer = Buffer({"a": "....", "b": "...."})
    buffer.partitions = {"train": {"a_0_0": failure("row"), "a_1_0": {}}}
    buffer.pending_keys = buffer.running_keys = {"train": set()}
    buffer.finished_keys = buffer.failure_keys = {"train": set()}
    assert buffer._wait_for_next_poll("train", 1e12) == 1e12
    buffer.partitions["train"]["b_3_0"] = failure("system", "EngineDeadError: it died")
    with pytest.raises(ResponsesFailed, match=r"1 of 8 .* so far: 1 x EngineDeadError: it died"):
        buffer._wait_for_next_poll("train", 1e12)


def test_reasons_are_folded_with_their_counts(sampled):
    buffer = Buffer({"a": "s" * 38 + "." * 42})
    with pytest.raises(ResponsesFailed, match=r"38 of 80 responses of step 3 failed: 38 x dead$"):
        sampled(buffer)


class RestartedBuffer(Buffer):
    """A buffer whose dead servers are restarted: of `after`, one dict for each restart, groups
    take the place of those that were asked again."""

    def __init__(self, groups: dict[str, str], *after: dict[str, str]) -> None:
        super().__init__(groups)
        self.asked: list[tuple[str, dict[str, list[int]]]] = []
        self._after = list(after)
        self.watch(
            interval_s=0.1,
            max_failed_fraction=0.1,
            expected=dict.fromkeys(groups, 4),
            ask_again=self.restart,
        )

    def restart(self, partition_id, done):
        self.asked.append((partition_id, dict(done)))
        if self._after:
            self.groups = self._after.pop(0)
            assert self.groups.keys() == done.keys()
            return True
        return False


@pytest.mark.parametrize("partition", ["train", "val"])
def test_lost_responses_are_asked_again_and_the_step_is_complete(sampled, partition):
    buffer = RestartedBuffer({"a": "....", "b": ".s-.", "c": "ssss"}, {"b": "....", "c": "...."})
    batch, metrics, cleared = sampled(buffer, partition)
    assert buffer.asked == [(partition, {"b": [0, 3], "c": []})]
    assert cleared == ["b_1_0", "c_0_0", "c_1_0", "c_2_0", "c_3_0"]  # the failures, not b_0 and b_3
    assert batch.keys == entries({"a": "....", "b": "....", "c": "...."})[0]
    assert not any(FAILURE_TAG in tag for tag in batch.tags)
    assert metrics["a"] == 2  # counts of both


def test_a_failure_of_a_row_is_not_asked_again(sampled):
    groups = {"a": "r...", "b": "....", "c": "....", "d": "...s"}
    buffer = RestartedBuffer(groups, {"d": "...."})
    assert buffer.asked == []
    batch, metrics, _ = sampled(buffer)
    assert [done for _, done in buffer.asked] == [{"d": [0, 1, 2]}]
    assert (len(batch.keys), metrics[FAILED]) == (15, 1)
    buffer = RestartedBuffer({"a": "r...", "b": "....", "c": "...."})
    sampled(buffer)
    assert buffer.asked == []


def test_a_server_that_dies_again_and_again_ends_the_step(sampled):
    lost = {"a": "...s"}
    buffer = RestartedBuffer(lost, *[lost] * 9)
    with pytest.raises(ResponsesFailed, match="1 of 4 responses of step 3 failed"):
        sampled(buffer)
    assert len(buffer.asked) == MAX_RESTARTS


def test_without_a_dead_server_nothing_is_asked_again(sampled):
    buffer = RestartedBuffer({"a": "...s"})
    with pytest.raises(ResponsesFailed, match="1 of 4 responses of step 3 failed: 1 x dead"):
        sampled(buffer)


def test_where_servers_are_restarted_the_other_responses_are_waited_for():
    buffer = RestartedBuffer({"a": "...."})
    buffer.partitions = {"train": {"a_3_0": failure("system")}}
    buffer.pending_keys = buffer.running_keys = {"train": set()}
    buffer.finished_keys = buffer.failure_keys = {"train": set()}
    assert buffer._wait_for_next_poll("train", 1e12) == 1e12


@pytest.fixture
def asynchronous(monkeypatch):
    """A buffer over groups, uid -> (letters, step): those older than 2 steps are dropped."""

    def make(groups: dict[str, tuple[str, int]], strategy: str = "drop", correct=None):
        listed = {}
        for uid, (letters, step) in groups.items():
            status = "failure" if {*letters} & {"r", "s"} else "finished"
            listed[uid] = {"is_prompt": True, "status": status, "global_steps": step}
            listed |= dict(zip(*entries({uid: letters}), strict=True))

        def clear(keys, partition_id):
            for key in keys:
                del listed[key]

        monkeypatch.setattr(transfer_queue, "kv_list", lambda: {"train": listed})

        def fields(keys, partition_id, select_fields):
            assert not any(FAILURE_TAG in listed[key] for key in keys)  # they have no data
            infos = [{"reward_extra_info": {"acc": correct[key]}} for key in keys]
            return {"extra_fields": infos}

        monkeypatch.setattr(transfer_queue, "kv_clear", clear)
        monkeypatch.setattr(transfer_queue, "kv_batch_get", fields)
        buffer = CountedReplayBufferAsync(
            trainer_mode="separate_async",
            trainer_config={},
            max_off_policy_threshold=2,
            max_off_policy_strategy=strategy,
            sampler_kwargs={},
            refill_fn=refilled.append,
            filter_groups_metric=None if correct is None else "acc",
        )
        expected = dict.fromkeys(groups, 4)
        buffer.watch(interval_s=0.01, max_failed_fraction=0.5, expected=expected)
        return buffer

    refilled: list[int] = []
    make.refilled = refilled
    return make


def test_a_group_with_failures_is_dropped_when_it_is_too_old(asynchronous):
    """veRL drops such a group at once, and does not expect one of that age in a batch."""
    buffer = asynchronous({"a": ("..r.", 3), "b": ("....", 3), "c": ("..r.", 4)})
    batch, metrics = buffer.sample(5, "train", 1)
    assert batch.keys == ["c_0_0", "c_1_0", "c_3_0"]
    assert asynchronous.refilled == [2]
    assert metrics["training/off_policy/evicted_samples"] == 2
    assert metrics[FAILED] == 1


def test_a_group_with_failures_is_filtered_by_what_is_left_of_it(asynchronous):
    groups = {"a": ("..r.", 5), "b": (".r..", 5), "c": ("....", 5), "d": ("rrr.", 5)}
    correct = dict.fromkeys(entries({uid: letters for uid, (letters, _) in groups.items()})[0], 1.0)
    buffer = asynchronous(groups, correct={**correct, "b_3_0": 0.0})
    batch, metrics = buffer.sample(5, "train", 2)
    assert {key[0] for key in batch.keys} == {"b"}  # d has one response left
    assert metrics["training/filter_groups/evicted_samples"] == 2  # a and c
    assert asynchronous.refilled == [2]


def test_a_failure_of_the_system_ends_the_step_however_old_its_group_is(asynchronous):
    buffer = asynchronous({"a": ("..s.", 3), "b": ("....", 5)})
    with pytest.raises(ResponsesFailed, match="1 of 8 responses failed so far: 1 x dead"):
        buffer.sample(5, "train", 1)


def test_where_old_groups_are_waited_for_none_is_dropped(asynchronous):
    buffer = asynchronous({"a": ("..r.", 3), "b": ("....", 4)}, strategy="wait")
    batch, _ = buffer.sample(5, "train", 1)
    assert batch.keys == ["a_0_0", "a_1_0", "a_3_0"] and asynchronous.refilled == []


@pytest.fixture
def filtering(monkeypatch):
    """`filtering(buffer class, limit, accuracies)`: batches of 2 prompts with 2 responses each.

    Prompts have the accuracies of their responses from the iterator, one pair after the other.
    """

    def make(kind, limit, accuracies, metric="acc"):
        pairs, listed, correct = iter(accuracies), {}, {}

        def add_prompts(num_prompts):
            for _ in range(num_prompts):
                uid = f"1-{len(correct):03}"
                listed[uid] = {"is_prompt": True, "status": "finished", "global_steps": 1}
                for sample, accuracy in enumerate(next(pairs)):
                    correct[f"{uid}_{sample}_0"] = accuracy
                    listed[f"{uid}_{sample}_0"] = {"status": "success"}

        def clear(keys, partition_id):
            for key in keys:
                listed.pop(key, None)

        def fields(keys, partition_id, select_fields):
            infos = [{"reward_extra_info": {"acc": correct[key]}} for key in keys]
            scores = [torch.tensor([0.0, correct[key]]) for key in keys]
            return {"extra_fields": infos, "rm_scores": scores}

        monkeypatch.setattr(transfer_queue, "kv_list", lambda: {"train": dict(listed)})
        monkeypatch.setattr(transfer_queue, "kv_clear", clear)
        monkeypatch.setattr(transfer_queue, "kv_batch_get", fields)
        buffer = kind(
            trainer_mode="sync",
            trainer_config={},
            max_off_policy_threshold=None,
            max_off_policy_strategy="drop",
            sampler_kwargs={},
            refill_fn=add_prompts,
            filter_groups_metric=metric,
            train_batch_size=2,
            gen_batch_size=1,
        )
        buffer.watch(
            interval_s=0.001,
            max_failed_fraction=0.5,
            expected={},
            max_num_gen_batches=limit,
            num_prompts=2,
        )
        add_prompts(2)
        return buffer

    return make


ALL_WRONG, ALL_CORRECT, MIXED = (0.0, 0.0), (1.0, 1.0), (0.0, 1.0)
BUFFERS = pytest.mark.parametrize("kind", [CountedReplayBuffer, CountedReplayBufferAsync])


@BUFFERS
def test_groups_without_signal_end_the_step_after_the_allowed_batches(filtering, kind):
    """3 batches are 6 groups: the batches of 2 (or 2 and then 2 at a time) come to 8."""
    buffer = filtering(kind, 3, [ALL_CORRECT, *[ALL_WRONG] * 99])
    with pytest.raises(ResponsesFailed) as refused:
        buffer.sample(1, "train", 2)
    for said in (
        "dropped 8 groups in step 1",
        "algorithm.filter_groups.max_num_gen_batches=3 batches of 2 prompts",
        "the same acc (groups by value: 0: 7, 1: 1)",
        "vapo.reward.answer_style",
        "(0: no limit)",
    ):
        assert said in str(refused.value)


@BUFFERS
@pytest.mark.parametrize("limit", [3, 0, -1])
def test_a_step_that_fills_within_the_limit_goes_on(filtering, kind, limit):
    buffer = filtering(kind, limit, [*[ALL_WRONG] * 6, *[MIXED] * 99])
    batch, metrics = buffer.sample(1, "train", 2)
    assert len(batch.keys) == 4
    assert metrics["training/filter_groups/evicted_samples"] == 6


@BUFFERS
def test_without_a_limit_a_step_goes_on_for_as_long_as_it_takes(filtering, kind):
    buffer = filtering(kind, 0, [*[ALL_WRONG] * 500, *[MIXED] * 99])
    assert len(buffer.sample(1, "train", 2)[0].keys) == 4


@BUFFERS
@pytest.mark.parametrize("metric", ["acc", "reward"])
def test_equal_fractions_are_no_signal(filtering, kind, metric):
    """Their standard deviation is 5.6e-17. Values that are unknown are kept, as veRL keeps them."""
    groups = [(0.44,) * 5, (math.nan,) * 5, (0.44,) * 5, (*(0.44,) * 4, 0.5), *[ALL_WRONG] * 99]
    batch, metrics = filtering(kind, 3, groups, metric).sample(1, "train", 2)
    assert {key.split("_")[0] for key in batch.keys} == {"1-005", "1-015"}
    assert metrics["training/filter_groups/evicted_samples"] == 2


@BUFFERS
def test_a_metric_that_no_response_has_is_named(filtering, kind):
    with pytest.raises(RuntimeError, match=r"missing DAPO metric 'f1': \['1-000', '1-002'\]"):
        filtering(kind, 3, [MIXED] * 2, "f1").sample(1, "train", 2)


@BUFFERS
def test_of_too_many_groups_those_at_the_first_places_are_trained(filtering, kind):
    """A set of names has another order in each process, and the run would not repeat."""
    buffer = filtering(kind, 0, [ALL_WRONG, *[MIXED] * 99])
    buffer.refill_fn(40)
    batch, _ = buffer.sample(1, "train", 3)
    assert {key.split("_")[0] for key in batch.keys} == {"1-002", "1-004", "1-006"}


@BUFFERS
def test_each_step_has_the_limit_for_itself(filtering, kind):
    buffer = filtering(kind, 3, [*[ALL_WRONG] * 6, *[MIXED] * 2, *[ALL_WRONG] * 6, *[MIXED] * 99])
    buffer.sample(1, "train", 2)
    buffer.refill_fn(2)
    batch, metrics = buffer.sample(2, "train", 2)
    assert len(batch.keys) == 4
    assert metrics["training/filter_groups/evicted_samples"] == 6


def test_a_resumed_run_forgets_the_responses_of_the_step_it_was_saved_in(monkeypatch):
    """Their prompts have left the queue; those in flight, and complete ones, are still there."""

    def prompt(status):
        return {"is_prompt": True, "status": status, "global_steps": 3}

    responses = {f"{uid}_{sample}_0": {} for uid in ("1-0", "2-0", "2-1") for sample in (0, 1)}
    listed = {
        "train": {**responses, "2-0": prompt("finished"), "2-1": prompt("running")},
        "prompts": {uid: {} for uid in ("1-0", "2-0", "2-1")},
    }

    def clear(keys, partition_id):
        for key in keys:
            del listed[partition_id][key]

    monkeypatch.setattr(transfer_queue, "kv_list", lambda name: {name: dict(listed[name])})
    monkeypatch.setattr(transfer_queue, "kv_clear", clear)
    forget_trained("train")
    assert {*listed["train"]} == {*responses, "2-0", "2-1"} - {"1-0_0_0", "1-0_1_0"}
    assert {*listed["prompts"]} == {"2-0", "2-1"}


def test_a_resumed_run_requests_again_what_the_system_lost(monkeypatch):
    """The failure is in the checkpoint, if no step sampled the prompt before it was saved."""

    def prompt(status):
        return {"is_prompt": True, "status": status, "global_steps": 3}

    listed = {
        "2-0": prompt("finished"),
        "2-0_0_0": {},
        "2-1": prompt("failure"),
        "2-1_0_0": {},
        "2-1_1_0": failure("system", "OSError: Stale file handle"),
        "2-2": prompt("failure"),
        "2-2_0_0": failure("row"),
    }

    def clear(keys, partition_id):
        for key in keys:
            del listed[key]

    def put(keys, partition_id, tags):
        listed.update(zip(keys, tags, strict=True))

    monkeypatch.setattr(transfer_queue, "kv_list", lambda name: {name: dict(listed)})
    monkeypatch.setattr(transfer_queue, "kv_clear", clear)
    monkeypatch.setattr(transfer_queue, "kv_batch_put", put)
    request_lost("train", 4)
    assert {*listed} == {"2-0", "2-0_0_0", "2-1", "2-2", "2-2_0_0"}
    assert listed["2-1"] == {"is_prompt": True, "status": "pending", "global_steps": 4}
    assert listed["2-2"]["status"] == "failure"


@given(
    num_ranks=st.integers(1, 4),
    rows_of_a_batch=st.integers(1, 8),
    num_batches=st.integers(1, 6),
    data=st.data(),
)
def test_padding_is_spread_over_the_mini_batches_of_its_rank(
    num_ranks, rows_of_a_batch, num_batches, data
):
    size = rows_of_a_batch * num_batches
    paddings = data.draw(st.lists(st.integers(0, size), min_size=num_ranks, max_size=num_ranks))
    is_padding = [place >= size - n for n in paddings for place in range(size)]
    order = spread_padding(is_padding, num_ranks)
    for rank, num_padding in enumerate(paddings):
        rows = order[rank * size : (rank + 1) * size]
        assert sorted(rows) == list(range(rank * size, (rank + 1) * size))
        assert [r for r in rows if not is_padding[r]] == sorted(rows)[: size - num_padding]
        batches = [rows[i : i + rows_of_a_batch] for i in range(0, size, rows_of_a_batch)]
        counts = [sum(is_padding[r] for r in batch) for batch in batches]
        assert max(counts) - min(counts) <= 1


def test_without_padding_no_row_moves():
    assert spread_padding([False] * 6, 2) == list(range(6))


def test_nothing_is_forgotten_of_an_empty_queue(monkeypatch):
    monkeypatch.setattr(transfer_queue, "kv_list", lambda name: None)
    forget_trained("train")
