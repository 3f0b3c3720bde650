"""An adaptive KL coefficient over a resume, and a callback once a checkpoint is complete."""

import json

import pytest
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.trainer.ppo.core_algos import AdaptiveKLController, FixedKLController

from vapo_verl.run_folder import checkpoints
from vapo_verl.trainer.checkpoint_extras import (
    KL_FILE,
    CallbackWhenComplete,
    read_kl_coef,
    write_kl_coef,
)
from vapo_verl.trainer.stopping import SafeStop


def adaptive():
    return AdaptiveKLController(init_kl_coef=0.1, target_kl=0.5, horizon=1000)


def test_an_adaptive_coefficient_goes_on_as_in_a_run_that_did_not_stop(tmp_path):
    """Twice the target, held to +20 %: 10 responses multiply it by 1 + 0.2 * 10 / 1000."""
    unbroken, stopped, resumed = adaptive(), adaptive(), adaptive()
    for controller in (unbroken, stopped):
        controller.update(current_kl=1.0, n_steps=10)
    assert stopped.value == pytest.approx(0.1 * 1.002)
    write_kl_coef(tmp_path, stopped)
    read_kl_coef(tmp_path, resumed)
    for controller in (unbroken, resumed):
        controller.update(current_kl=0.3, n_steps=10)
    assert resumed.value == unbroken.value


def test_the_coefficient_is_a_file_of_the_checkpoint(tmp_path):
    stop = SafeStop(tmp_path, num_checkpoints=None)
    with stop.saving(3):
        folder = checkpoints.checkpoint_folder(tmp_path, 3)
        folder.mkdir()
        write_kl_coef(folder, adaptive())
    stop.declare_saved()
    assert json.loads((folder / KL_FILE).read_text()) == {"kl_coef": 0.1}
    assert KL_FILE in json.loads((folder / checkpoints.MARKER).read_text())["files"]
    assert checkpoints.verify_checkpoint(folder) == []


def test_a_checkpoint_of_an_older_release_warns_and_starts_from_the_setting(tmp_path, capsys):
    controller = adaptive()
    read_kl_coef(tmp_path, controller)
    assert controller.value == 0.1
    said = capsys.readouterr().out
    assert "kl_coef.json is missing" in said and "algorithm.kl_ctrl.kl_coef=0.1" in said


@pytest.mark.parametrize("controller", [None, FixedKLController(kl_coef=0.2)])
def test_a_fixed_coefficient_is_that_of_the_config(tmp_path, controller, capsys):
    write_kl_coef(tmp_path, controller)
    assert not (tmp_path / KL_FILE).exists()
    (tmp_path / KL_FILE).write_text('{"kl_coef": 0.5}')
    read_kl_coef(tmp_path, controller)
    assert controller is None or controller.value == 0.2
    assert capsys.readouterr().out == ""


class Upload(CheckpointCallback):
    """A user's callback that notes which files it would copy."""

    def __init__(self, config=None):
        super().__init__(config)
        self.copies = []

    def on_save(self, trainer, global_step, checkpoint_dir, async_save=False, **kwargs):
        names = sorted(path.name for path in checkpoint_dir.iterdir())
        self.copies.append((trainer, global_step, async_save, names))


def test_the_callback_sees_a_complete_checkpoint_once(tmp_path):
    upload = Upload()
    held = CallbackWhenComplete(upload)
    stop = SafeStop(tmp_path, num_checkpoints=None)
    with stop.saving(3):
        folder = checkpoints.checkpoint_folder(tmp_path, 3)
        folder.mkdir()
        (folder / "data.pt").write_text("rows")
        held.on_save(trainer="it", global_step=3, checkpoint_dir=folder, async_save=False)
    assert upload.copies == []
    stop.declare_saved()
    held.checkpoint_complete()
    held.checkpoint_complete()  # at the end of a step without a checkpoint
    assert upload.copies == [("it", 3, False, ["complete.json", "data.pt"])]


def test_an_error_of_the_callback_is_not_lost():
    class Failing(CheckpointCallback):
        def on_save(self, **event):
            raise OSError("no space in the bucket")

    held = CallbackWhenComplete(Failing())
    held.on_save(trainer=None, global_step=1, checkpoint_dir="x")
    with pytest.raises(OSError, match="bucket"):
        held.checkpoint_complete()
