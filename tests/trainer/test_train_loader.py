"""A resumed loader reads the rows of the straight run, whatever its number of workers."""

import pytest
from omegaconf import OmegaConf
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from verl.trainer.ppo.utils import create_rl_sampler

from vapo_verl.trainer.train_loader import TrainLoader

BATCH, NUM_STEPS = 4, 13


class Rows(Dataset):
    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, row: int) -> int:
        return row


class Reader:
    """The loader as veRL makes it, read as `_fetch_one_gen_batch` of its trainer does."""

    def __init__(
        self, num_rows: int, workers: int, shuffle: bool, batch: int = BATCH, ours: bool = True
    ) -> None:
        rows = Rows(num_rows)
        data = OmegaConf.create({"shuffle": shuffle, "seed": 3})
        loader = StatefulDataLoader(
            dataset=rows,
            batch_size=batch,
            num_workers=workers,
            drop_last=True,
            collate_fn=list,
            sampler=create_rl_sampler(data, rows),
        )
        self.loader = TrainLoader.like(loader) if ours else loader
        self.batches = None

    def read(self) -> list[int]:
        try:
            if self.batches is None:
                self.batches = iter(self.loader)
            return next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            return next(self.batches)


def resumed(state: dict, num_steps: int, *how, **more) -> list[list[int]]:
    reader = Reader(*how, **more)
    reader.loader.load_state_dict(state)
    return [reader.read() for _ in range(num_steps)]


@pytest.mark.parametrize(
    ("num_rows", "shuffle", "workers", "others"),
    [
        (20, True, 0, 1),
        (20, True, 2, 3),
        (20, False, 0, 2),
        (20, False, 2, 1),
        (22, True, 0, 3),  # the last two rows of a pass are no batch
        (22, True, 2, 2),
        (22, False, 0, 2),
        (22, False, 2, 3),
    ],
)
def test_every_step_can_be_resumed_with_any_number_of_workers(num_rows, shuffle, workers, others):
    """Five batches a pass: step 5 and 10 are at the boundary of an epoch.

    A run of 0 or 2 `workers` is resumed with none, and with 1, 2 or 3 `others`: each is a fork.
    """
    straight = Reader(num_rows, workers, shuffle)
    batches, states = [], [straight.loader.state_dict()]
    for _ in range(NUM_STEPS):
        batches.append(straight.read())
        states.append(straight.loader.state_dict())
    for step in (0, 1, 5, 6, 10):
        for number in (0, others):
            rest = resumed(states[step], NUM_STEPS - step, num_rows, number, shuffle)
            assert rest == batches[step:], (step, number)


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_order_is_that_of_verl_without_workers_and_its_states_are_read(shuffle):
    verl, ours = Reader(20, 0, shuffle, ours=False), Reader(20, 2, shuffle)
    batches = [verl.read() for _ in range(7)]
    state = verl.loader.state_dict()
    batches += [verl.read() for _ in range(6)]
    assert [ours.read() for _ in range(NUM_STEPS)] == batches
    for workers in (0, 2):
        assert resumed(state, 6, 20, workers, shuffle) == batches[7:]


def test_the_passes_of_a_straight_run_differ_and_hold_every_row_once():
    reader = Reader(20, 0, True)
    first, second = ([reader.read() for _ in range(5)] for _ in range(2))
    assert first != second
    rows = [sorted(row for batch in batches for row in batch) for batches in (first, second)]
    assert rows == [list(range(20))] * 2


@pytest.mark.parametrize("workers", [0, 2])
def test_smaller_data_begin_a_new_pass_and_say_so(workers, capsys):
    """After an accepted change; veRL's own loader ends with StopIteration, twice."""
    reader = Reader(20, 0, True)
    for _ in range(4):
        reader.read()
    state = reader.loader.state_dict()
    fresh = Reader(12, workers, True)
    assert resumed(state, 3, 12, workers, True) == [fresh.read() for _ in range(3)]
    assert "written with 20 rows of training data, and there are 12 now" in capsys.readouterr().out


def test_a_position_of_an_older_release_beyond_the_data_begins_a_new_pass(capsys):
    reader = Reader(20, 2, False)
    for _ in range(4):
        reader.read()
    state = {key: value for key, value in reader.loader.state_dict().items() if key != "num_rows"}
    assert resumed(state, 1, 8, 0, False) == [[0, 1, 2, 3]]
    assert "over 16 rows" in capsys.readouterr().out


def test_another_batch_size_goes_on_after_the_rows_that_were_read():
    reader = Reader(20, 0, False)
    reader.read()
    reader.read()
    state = reader.loader.state_dict()
    assert resumed(state, 2, 20, 0, False, batch=6) == [
        [8, 9, 10, 11, 12, 13],
        [14, *range(15, 20)],
    ]
