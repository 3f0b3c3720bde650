"""Equal-length position ids: the upstream fault is still there, and fixed here."""

import pytest
import torch
from tensordict import TensorDict

from vapo_verl.patches.upstream import LENGTH_DIM, with_ragged_positions

UPSTREAM_MENDED = (
    "torch or veRL now keeps the ragged dimension of equal-length position ids: "
    "vapo_verl/patches/upstream.py and its calls can go"
)


def positions(*lengths: int) -> list[torch.Tensor]:
    return [torch.arange(4 * length).reshape(4, length) for length in lengths]


def batch(rows: list[torch.Tensor]) -> TensorDict:
    ids = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    return TensorDict({"position_ids": ids}, batch_size=len(rows))


def test_upstream_still_takes_the_wrong_dimension_for_the_ragged_one():
    assert batch(positions(5, 5))["position_ids"]._ragged_idx != LENGTH_DIM, UPSTREAM_MENDED


@pytest.mark.parametrize("lengths", [(5, 5), (5, 7), (3,)])
def test_rows_are_kept_and_the_length_is_ragged(lengths):
    rows = positions(*lengths)
    fixed = with_ragged_positions(batch(rows))["position_ids"]
    assert fixed._ragged_idx == LENGTH_DIM
    assert all(torch.equal(a, b) for a, b in zip(fixed.unbind(), rows, strict=True))


def test_batches_without_or_with_dense_positions_pass_unchanged():
    empty = TensorDict({}, batch_size=2)
    assert with_ragged_positions(empty) is empty
    dense = TensorDict({"position_ids": torch.zeros(2, 3)}, batch_size=2)
    assert with_ragged_positions(dense)["position_ids"].shape == (2, 3)
