"""Reading the replay buffer, in every container that TransferQueue returns."""

import re
from pathlib import Path

import numpy as np
import torch
import transfer_queue
from tensordict import NonTensorData, NonTensorStack
from transfer_queue import KVBatchMeta

import vapo_verl
from tests.sample_records import sample_record
from vapo_verl.trainer.replay_buffer import column_values, fit_width, read_columns, read_responses

RECORD = sample_record()


def ragged(*rows):
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


def test_no_other_module_imports_transfer_queue():
    package = Path(vapo_verl.__file__).parent
    importing = re.compile(r"^\s*(?:import|from) transfer_queue\b", re.MULTILINE)
    found = [p for p in package.rglob("*.py") if importing.search(p.read_text())]
    assert [str(p.relative_to(package)) for p in found] == ["trainer/replay_buffer.py"]


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
        tags=[{}, {"is_padding": True}, {"is_padding": False}],
        partition_id="train",
    )
    step = read_responses(batch)
    assert step.keys == ["a_0_0", "a_1_0"]
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
