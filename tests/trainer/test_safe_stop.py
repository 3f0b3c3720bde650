"""A run that is asked to stop ends between two steps, the last of them saved."""

import pytest

from vapo_verl.run_folder import checkpoints
from vapo_verl.trainer.stopping import RunStopped, SafeStop


class Run:
    """What the trainer does at a stop; `events` tells what it did."""

    def __init__(self, folder):
        self.folder = folder
        self.stop = SafeStop(folder, num_checkpoints=None)
        self.events = []

    def begin(self, step):
        self.stop.begin_step(
            step, sleep=lambda: self.events.append("sleep"), save_step=self.save_step
        )

    def save_step(self, step):
        self.events.append(f"save {step}")
        with self.stop.saving(step):
            checkpoints.checkpoint_folder(self.folder, step).mkdir()


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_without_a_request_steps_begin(run):
    run.begin(1)
    run.begin(2)
    assert run.events == []


def test_the_step_before_is_saved_with_the_engine_asleep(run, tmp_path):
    run.begin(1)
    assert run.stop.request()
    with pytest.raises(RunStopped) as stopped:
        run.begin(2)
    assert stopped.value.step == 1
    assert run.events == ["sleep", "save 1"]
    assert checkpoints.latest_complete(tmp_path) == 1


def test_a_step_that_has_just_been_saved_is_not_saved_again(run):
    run.begin(1)
    run.save_step(1)
    run.stop.declare_saved()
    run.stop.request()
    with pytest.raises(RunStopped):
        run.begin(2)
    assert run.events == ["save 1"]


def test_a_written_checkpoint_is_complete_only_once_the_step_is_logged(run, tmp_path):
    run.begin(1)
    run.save_step(1)
    assert checkpoints.latest_complete(tmp_path) is None
    run.stop.declare_saved()
    run.stop.declare_saved()
    assert checkpoints.latest_complete(tmp_path) == 1


def test_before_the_first_step_nothing_is_to_be_saved(run):
    assert not run.stop.request()
    with pytest.raises(RunStopped) as stopped:
        run.begin(1)
    assert stopped.value.step == 0
    assert run.events == []


def test_a_resumed_run_that_stops_at_once_has_its_checkpoint_already(run):
    run.stop.resumed(5)
    run.stop.request()
    with pytest.raises(RunStopped) as stopped:
        run.begin(6)
    assert stopped.value.step == 5
    assert run.events == []
