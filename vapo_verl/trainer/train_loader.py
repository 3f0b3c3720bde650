"""The loader of training rows: one order and one saved position for any number of workers.

torchdata 0.11 has a different state for each ``num_workers``, and loading one into another fails.
With workers it also asks its sampler for an iterator more than once a pass, and draws a permutation
each time, so that the second pass differs. Here a position depends on neither: it is the state of
the random generator at the beginning of the pass, and the number of rows read since.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import Sampler
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler

from vapo_verl.console import say

NUM_ROWS = "num_rows"
"""Our key in the state: rows of the data set, after veRL has filtered it."""
_OF_THE_PASS = (
    "_index_sampler_state",
    "_sampler_iter_state",
    "_sampler_iter_yielded",
    "_IterableDataset_len_called",
    "_shared_seed",
)
_WORKER = {"dataset_state": None, "fetcher_state": None}
"""A data set of rows by index keeps no state of its own."""


class PassSampler(Sampler[int]):
    """A permutation of all rows for each pass, drawn when it is first read: as torchdata's
    RandomSampler draws them without workers, and with the same state.

    Args:
        num_rows: rows of the data set.
        start: state of the generator before the first pass.
    """

    def __init__(self, num_rows: int, start: torch.Tensor) -> None:
        self.num_rows = num_rows
        self.next_start = start

    def __iter__(self) -> Iterator[int]:
        return _Pass(self)

    def __len__(self) -> int:
        return self.num_rows


class _Pass(Iterator[int]):
    def __init__(self, sampler: PassSampler) -> None:
        self._sampler, self._start = sampler, sampler.next_start
        self._rows: list[int] | None = None
        self._num_read = 0

    def __next__(self) -> int:
        if self._rows is None:
            self._draw()
        assert self._rows is not None
        if self._num_read == len(self._rows):
            raise StopIteration
        self._num_read += 1
        return self._rows[self._num_read - 1]

    def _draw(self) -> None:
        generator = torch.Generator()
        generator.set_state(self._start)
        self._rows = torch.randperm(self._sampler.num_rows, generator=generator).tolist()
        self._sampler.next_start = generator.get_state()

    def state_dict(self) -> dict[str, Any]:
        return {"yielded": self._num_read, "generator": self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._start, self._num_read = state["generator"], state["yielded"]
        self._draw()


class TrainLoader(StatefulDataLoader):
    """veRL's loader. A position in data of another size is not used: a new pass begins."""

    @classmethod
    def like(cls, loader: StatefulDataLoader) -> "TrainLoader":
        """The same rows, in the order in which `loader` reads them without workers."""
        sampler = loader.sampler
        if isinstance(sampler, RandomSampler):
            sampler = PassSampler(len(loader.dataset), sampler.generator.get_state())
        return cls(
            dataset=loader.dataset,
            batch_size=loader.batch_size,
            num_workers=loader.num_workers,
            drop_last=loader.drop_last,
            collate_fn=loader.collate_fn,
            sampler=sampler,
        )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), NUM_ROWS: len(self.dataset)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume the position of a loader with any number of workers."""
        state = {key: value for key, value in state_dict.items() if key != NUM_ROWS}
        num_rows, before = len(self.dataset), state_dict.get(NUM_ROWS)
        if before not in (None, num_rows) or rows_read(state) > num_rows:
            was = f"{before} rows" if before is not None else f"over {rows_read(state)} rows"
            say(
                f"WARNING: the checkpoint was written with {was} of training data, and there are "
                f"{num_rows} now: a new pass over the data begins"
            )
            return
        super().load_state_dict(state_for(state, self.num_workers))


def rows_read(state: Mapping[str, Any]) -> int:
    """Rows of the current pass that were read before a saved position."""
    sampler: Mapping[str, Any] = _main(state).get("_sampler_iter_state") or {}
    return int(sampler.get("samples_yielded", 0))


def state_for(state: Mapping[str, Any], num_workers: int) -> dict[str, Any]:
    """The position `state` in the form that a loader with `num_workers` reads."""
    main = _main(state)
    if main.get("_num_workers", 0) == num_workers:
        return dict(state)
    assert not state.get("_steps_since_snapshot"), "veRL takes a snapshot at every step"
    shared = {name: main[name] for name in _OF_THE_PASS}
    finished = {"_iterator_finished": state["_iterator_finished"]}
    num_batches = main["_sampler_iter_yielded"]
    if num_workers == 0:
        return {**shared, **_WORKER, **finished, "_num_yielded": num_batches}
    workers = {f"worker_{i}": {"worker_id": i, **_WORKER} for i in range(num_workers)}
    snapshot = {
        "_snapshot_step": num_batches,
        "_last_yielded_worker_id": num_workers - 1,
        "_main_snapshot": {**shared, "_num_workers": num_workers, "_base_seed": 0},
        "_worker_snapshots": workers,
    }
    return {"_snapshot": snapshot, "_steps_since_snapshot": 0, **finished}


def _main(state: Mapping[str, Any]) -> Mapping[str, Any]:
    return state["_snapshot"]["_main_snapshot"] if "_snapshot" in state else state
