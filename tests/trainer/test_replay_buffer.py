"""Columns of the replay buffer, in every container TransferQueue hands out."""

import numpy as np
import torch
from tensordict import NonTensorData, NonTensorStack

from vapo_verl.trainer.replay_buffer import column_values, fit_width


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
