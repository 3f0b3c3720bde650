"""How a trainer begins: the config that its folder keeps, and a run that has no step left."""

import contextlib
import json

import pytest
from omegaconf import OmegaConf
from torchdata.stateful_dataloader import StatefulDataLoader
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from tests.checkpoints import mark_complete
from tests.composing import compose_once
from vapo_verl import launch
from vapo_verl.digits.model import model_dir
from vapo_verl.run_folder import RunFolderError
from vapo_verl.run_folder.checkpoints import POINTER, checkpoint_folder
from vapo_verl.run_folder.layout import CONFIG_FILE, config_file
from vapo_verl.run_folder.metrics import MetricsFile
from vapo_verl.run_folder.resume import INPUTS_FILE, inputs_of
from vapo_verl.trainer import liveness
from vapo_verl.trainer.trainer import VapoTrainer

ROWS, BATCH, EPOCHS, LAST = 50, 16, 2, 6
CLIP = "actor_rollout_ref.actor.clip_ratio"


class NoMonitor:
    """There is no process to watch."""

    def __init__(self, *_, **__):
        pass

    def phase(self, name):
        return contextlib.nullcontext()


def load_data(trainer):
    """As veRL, which counts the rows after its filter and changes the config."""
    trainer.train_dataset = range(ROWS)
    trainer.train_dataloader = StatefulDataLoader(trainer.train_dataset, batch_size=BATCH)
    config = trainer.config
    trainer.steps_per_epoch = ROWS // config.data.train_batch_size
    total = config.trainer.total_training_steps
    trainer.total_training_steps = total or trainer.steps_per_epoch * config.trainer.total_epochs
    config.data.gen_batch_size = 1


def load_checkpoint(trainer):
    """As veRL, by its pointer."""
    pointer = trainer.run_dir / POINTER
    trainer.global_steps = int(pointer.read_text()) if pointer.exists() else 0


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """A run folder; trainers that begin there start no process."""
    monkeypatch.setattr(liveness, "Monitor", NoMonitor)
    monkeypatch.setattr(PPOTrainer, "_init_dataloader", load_data)
    monkeypatch.setattr(PPOTrainer, "_load_checkpoint", load_checkpoint)
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def settled(run_dir, *overrides):
    given = [f"trainer.default_local_dir={run_dir}", "trainer.total_training_steps=null"]
    given += [f"trainer.total_epochs={EPOCHS}", f"data.train_batch_size={BATCH}", *overrides]
    config = compose_once("smoke", given)
    launch.settle(config)
    return config


def begin(run_dir, *overrides):
    """A trainer up to the loaded checkpoint."""
    trainer = VapoTrainer(settled(run_dir, *overrides))
    trainer._init_dataloader()
    trainer._load_checkpoint()
    return trainer


def save(run_dir, *steps):
    for step in steps:
        checkpoint_folder(run_dir, step).mkdir()
        (checkpoint_folder(run_dir, step) / "data.pt").write_text("rows")
        mark_complete(run_dir, step)


def validate(run_dir, step):
    MetricsFile(run_dir / "metrics.jsonl", step).log({"val-core/digits/acc/mean@1": 0.5}, step)


def clip_of(run_dir, step):
    return OmegaConf.select(OmegaConf.load(config_file(run_dir, step)), CLIP)


def test_the_folder_keeps_the_config_of_the_start_and_not_what_verl_makes_of_it(run_dir):
    begin(run_dir)
    written, given = OmegaConf.load(run_dir / CONFIG_FILE), settled(run_dir)
    given.trainer.v1.trainer_mode = VapoTrainer.mode  # veRL's name of it
    assert written == OmegaConf.create(OmegaConf.to_yaml(given))
    assert (written.data.gen_batch_size, written.trainer.total_epochs) == (None, EPOCHS)
    assert json.loads((run_dir / INPUTS_FILE).read_text()) == inputs_of(launch.plain(given))


def test_a_damaged_newest_checkpoint_does_not_date_the_new_config(run_dir, capsys):
    """The run falls back to step 2: step 4 is trained again, with the new config."""
    begin(run_dir, f"{CLIP}=0.2")
    save(run_dir, 2, 4)
    (checkpoint_folder(run_dir, 4) / "data.pt").write_text("dust")
    assert begin(run_dir, f"{CLIP}=0.1").global_steps == 2
    save(run_dir, 5)
    assert [clip_of(run_dir, step) for step in (2, 3, 4, 5)] == [0.2, 0.1, 0.1, 0.1]
    assert "it is set aside, resuming from step 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [
        (),
        (f"{CLIP}=0.1",),
        ("trainer.total_epochs=1",),
        ("data.train_batch_size=25",),
        (f"actor_rollout_ref.model.path={model_dir('hasty_digits')}",),  # accepted by the driver
    ],
)
def test_a_start_after_the_last_step_is_refused_and_changes_no_config(run_dir, changes):
    """A folder of an older release, whose number of rows the driver does not know."""
    begin(run_dir)
    save(run_dir, LAST)
    validate(run_dir, LAST)
    before = [(run_dir / name).read_bytes() for name in (CONFIG_FILE, INPUTS_FILE)]
    with pytest.raises(
        RunFolderError, match=r"nothing to train: .*global_step_6 is of step 6, and"
    ):
        begin(run_dir, *changes)
    assert [path.name for path in run_dir.glob("config*")] == [CONFIG_FILE]
    assert [(run_dir / name).read_bytes() for name in (CONFIG_FILE, INPUTS_FILE)] == before


def test_a_checkpoint_of_the_last_step_that_is_given_is_refused(run_dir, tmp_path):
    save(run_dir, LAST)
    given = f"trainer.resume_from_path={checkpoint_folder(run_dir, LAST)}"
    with pytest.raises(RunFolderError, match="nothing to train"):
        begin(tmp_path / "run", "trainer.resume_mode=resume_path", given)


def test_a_finished_run_is_one_whose_last_checkpoint_is_intact_and_validated(run_dir):
    begin(run_dir)
    save(run_dir, 4, LAST)
    trainer = begin(run_dir)
    assert (trainer.global_steps, trainer.lacks_validation) == (LAST, True)
    validate(run_dir, LAST)
    (checkpoint_folder(run_dir, LAST) / "data.pt").write_text("dust")
    trainer = begin(run_dir)
    assert (trainer.global_steps, trainer.lacks_validation) == (4, False)


def test_a_start_that_only_validates_or_trains_on_begins(run_dir):
    begin(run_dir)
    save(run_dir, LAST)
    validate(run_dir, LAST)
    for change in ("trainer.val_only=true", "trainer.total_epochs=3"):
        assert begin(run_dir, change).global_steps == LAST


def test_the_driver_knows_the_last_step_by_the_rows_that_the_trainer_has_counted(run_dir):
    assert launch.last_step(settled(run_dir)) is None
    begin(run_dir)
    changes = {
        (): LAST,
        ("trainer.total_epochs=3",): 9,
        ("data.train_batch_size=25",): 4,
        ("trainer.total_training_steps=7",): 7,
        ("data.val_batch_size=3", "data.max_response_length=9"): LAST,
        ("data.max_prompt_length=64",): None,
        ("data.train_max_samples=16",): None,
        ("data.train_files=other.parquet",): None,
    }
    assert {key: launch.last_step(settled(run_dir, *key)) for key in changes} == changes
