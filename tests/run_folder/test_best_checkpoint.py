"""The best checkpoint by a metric outlives the newest ones, and a file names it."""

import json

import pytest

from vapo_verl.run_folder import checkpoints
from vapo_verl.run_folder.layout import METRICS_FILE
from vapo_verl.trainer.stopping import SafeStop

METRIC = "val/digits/accuracy"


def train(run_dir, accuracies, keep, *, freq=1):
    """A run that saves every step, and validates every `freq` steps."""
    stop = SafeStop(run_dir, keep, METRIC)
    for step, accuracy in enumerate(accuracies, start=1):
        with stop.saving(step):
            folder = checkpoints.checkpoint_folder(run_dir, step)
            folder.mkdir(parents=True)
            (folder / "weights.pt").write_bytes(b"weights")
        data = {METRIC: accuracy} if step % freq == 0 else {"loss": 0.5}
        with (run_dir / METRICS_FILE).open("a") as file:
            file.write(json.dumps({"step": step, "data": data}) + "\n")
        stop.declare_saved()


def best(run_dir):
    return json.loads((run_dir / checkpoints.BEST_FILE).read_text())


@pytest.mark.parametrize(
    ("accuracies", "keep", "left", "step"),
    [
        ([0.1, 0.5, 0.3, 0.2, 0.4], 1, [2, 5], 2),
        ([0.1, 0.5, 0.3, 0.2, 0.4], 2, [2, 4, 5], 2),
        ([0.1, 0.2, 0.3], 1, [3], 3),
        ([0.5, 0.5, 0.1], 1, [2, 3], 2),  # the newer of equal ones
        ([0.9, 0.5, 0.3], 3, [1, 2, 3], 1),
        ([0.1, 0.5, 0.3], None, [1, 2, 3], 2),
    ],
)
def test_the_best_is_kept_beside_the_newest(accuracies, keep, left, step, tmp_path):
    train(tmp_path, accuracies, keep)
    assert checkpoints.complete_steps(tmp_path) == left
    assert best(tmp_path) == {"step": step, "metric": METRIC, "value": accuracies[step - 1]}


def test_steps_without_a_validation_are_never_the_best(tmp_path):
    train(tmp_path, [0.9, 0.2, 0.9, 0.1], 1, freq=2)
    assert checkpoints.complete_steps(tmp_path) == [2, 4]
    assert best(tmp_path)["step"] == 2


def test_without_any_value_nothing_is_named(tmp_path):
    train(tmp_path, [0.1, 0.2], 1, freq=9)
    assert checkpoints.complete_steps(tmp_path) == [2]
    assert checkpoints.best_complete(tmp_path, checkpoints.Scores(METRIC, {3: 0.5})) is None
    assert not (tmp_path / checkpoints.BEST_FILE).exists()


def test_a_resumed_run_goes_on_to_keep_the_best(tmp_path):
    train(tmp_path, [0.1, 0.5], 1)
    stop = SafeStop(tmp_path, 1, METRIC)
    stop.resumed(2)
    with stop.saving(3):
        checkpoints.checkpoint_folder(tmp_path, 3).mkdir()
    stop.declare_saved()  # it was stopped before its validation
    assert checkpoints.complete_steps(tmp_path) == [2, 3]
    assert best(tmp_path)["step"] == 2


def test_a_checkpoint_that_is_validated_later_can_be_the_best(tmp_path):
    train(tmp_path, [0.1, 0.5, 0.9], 1, freq=2)  # killed before the validation of step 3
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write(json.dumps({"step": 3, "data": {METRIC: 0.9}}) + "\n")
    stop = SafeStop(tmp_path, 1, METRIC)
    stop.resumed(3)
    stop.update_best()
    assert best(tmp_path) == {"step": 3, "metric": METRIC, "value": 0.9}
    assert checkpoints.complete_steps(tmp_path) == [3]
