"""The trainer's answer to a request to stop, without veRL's workers."""

import threading
from types import SimpleNamespace

import pytest
from verl.trainer.ppo.v1 import PPOTrainerSync

from vapo_verl.run_folder import checkpoints
from vapo_verl.trainer.step_line import StepLine
from vapo_verl.trainer.stopping import RunStopped
from vapo_verl.trainer.trainer import VapoTrainer


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """A trainer of which only saving and stopping work; `events` tells what it did."""
    trainer = object.__new__(VapoTrainer)
    trainer.run_dir = tmp_path
    trainer.global_steps = 0
    trainer.events = []
    trainer._stop_requested = threading.Event()
    trainer._training = False
    trainer._saved_step = 0
    trainer._num_checkpoints = None
    trainer._step_line = StepLine(total_steps=10)
    trainer.stopped_at = None
    trainer.checkpoint_manager = SimpleNamespace(
        sleep_replicas=lambda: trainer.events.append("sleep")
    )

    def save(self):
        trainer.events.append(f"save {self.global_steps}")
        checkpoints.checkpoint_folder(tmp_path, self.global_steps).mkdir()

    monkeypatch.setattr(PPOTrainerSync, "_save_checkpoint", save)
    return trainer


def begin(trainer, step):
    trainer.global_steps = step
    trainer.on_step_begin()


def test_without_a_request_steps_begin(trainer):
    begin(trainer, 1)
    begin(trainer, 2)
    assert trainer.events == []


def test_the_step_before_is_saved_with_the_engine_asleep(trainer, tmp_path):
    begin(trainer, 1)
    assert trainer.request_stop()
    with pytest.raises(RunStopped) as stopped:
        begin(trainer, 2)
    assert stopped.value.step == 1
    assert trainer.events == ["sleep", "save 1"]
    assert checkpoints.latest_complete(tmp_path) == 1


def test_a_step_that_has_just_been_saved_is_not_saved_again(trainer):
    begin(trainer, 1)
    trainer._save_checkpoint()
    trainer.request_stop()
    with pytest.raises(RunStopped):
        begin(trainer, 2)
    assert trainer.events == ["save 1"]


def test_before_the_first_step_nothing_is_to_be_saved(trainer):
    assert not trainer.request_stop()
    with pytest.raises(RunStopped) as stopped:
        begin(trainer, 1)
    assert stopped.value.step == 0
    assert trainer.events == []


def test_a_resumed_run_that_stops_at_once_has_its_checkpoint_already(trainer):
    trainer._saved_step = 5
    trainer.request_stop()
    with pytest.raises(RunStopped) as stopped:
        begin(trainer, 6)
    assert stopped.value.step == 5
    assert trainer.events == []
