"""Groups: the responses to one prompt, and sums over them."""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Which responses belong to which prompt."""

    index: Tensor
    """Group of each response [B], numbered in order of first appearance."""
    num_groups: int

    @classmethod
    def of(cls, group_ids: Iterable[Hashable], device: torch.device) -> "Groups":
        """From hashable ids [B], such as veRL's object array of uid strings."""
        ids = group_ids.tolist() if hasattr(group_ids, "tolist") else list(group_ids)
        number = {group_id: i for i, group_id in enumerate(dict.fromkeys(ids))}
        index = torch.tensor([number[i] for i in ids], dtype=torch.long, device=device)
        return cls(index=index, num_groups=len(number))

    def members(self) -> Iterator[Tensor]:
        """Responses of each group, in the order of the batch."""
        return (torch.nonzero(self.index == group)[:, 0] for group in range(self.num_groups))

    def sizes(self) -> Tensor:
        """Responses of each group [G]."""
        return torch.bincount(self.index, minlength=self.num_groups)

    def unequal(self, values: Tensor) -> Tensor:
        """Whether a group's values [B] differ at all [G]."""
        first = values.new_zeros(self.num_groups)
        low = first.scatter_reduce(0, self.index, values, "amin", include_self=False)
        high = first.scatter_reduce(0, self.index, values, "amax", include_self=False)
        return high > low


def sum_by(index: Tensor, values: Tensor, size: int) -> Tensor:
    """Sum of the values [N] at each index 0..size-1; 0 where there are none."""
    return values.new_zeros(size).index_add_(0, index, values)


def mean_by(index: Tensor, values: Tensor, size: int) -> Tensor:
    """Mean of the values [N] at each index 0..size-1; 0 where there are none."""
    return sum_by(index, values, size) / torch.bincount(index, minlength=size).clamp(min=1)
