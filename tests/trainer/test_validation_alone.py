"""A start that only validates, or that is stopped, leaves what the folder has recorded."""

import contextlib
import json
import os
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from tests.checkpoints import mark_complete
from tests.composing import compose_once
from vapo_verl import launch
from vapo_verl.config import vapo_config
from vapo_verl.run_folder.checkpoints import checkpoint_folder
from vapo_verl.run_folder.metrics import MetricsFile
from vapo_verl.trainer.stopping import RunStopped
from vapo_verl.trainer.trainer import VapoTrainer

ENV_VARS = "ray_kwargs.ray_init.runtime_env.env_vars"
TRACKERS = ("TENSORBOARD_DIR", "VERL_FILE_LOGGER_PATH")


def save(run_dir, step):
    checkpoint_folder(run_dir, step).mkdir(parents=True)
    mark_complete(run_dir, step)


@pytest.fixture
def run_dir(tmp_path):
    """A run at step 6, with a checkpoint of step 4 as well."""
    folder = tmp_path / "run"
    for step in (4, 6):
        save(folder, step)
    metrics = MetricsFile(folder / "metrics.jsonl", 0)
    for step in range(7):
        metrics.log({"vapo/reward/total": 0.1 * step}, step)
    (folder / "rollouts").mkdir()
    (folder / "rollouts" / "step_000005.parquet").write_bytes(b"rows")
    for name in ("config.yaml", "inputs.json", "report.html"):
        (folder / name).write_text("{}")
    return folder


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def at_step(run_dir, step, *overrides):
    path = checkpoint_folder(run_dir, step)
    return [
        f"trainer.default_local_dir={run_dir}",
        "trainer.resume_mode=resume_path",
        f"trainer.resume_from_path={path}",
        *overrides,
    ]


class Trainer(VapoTrainer):
    """Resumed at a step, and nothing else: no workers."""

    def __init__(self, run_dir, step, *overrides):
        self.config = compose_once("smoke", overrides)
        self.vapo = vapo_config(OmegaConf.to_container(self.config.vapo, resolve=True))
        self.run_dir, self.val_only = run_dir, self.config.trainer.val_only
        self.total_training_steps, self.global_steps = 6, step


class Backend:
    def __init__(self):
        self.logged = []

    def log(self, data, step):
        self.logged.append((step, data))


def test_an_older_checkpoint_is_validated_without_a_change_of_the_runs_history(run_dir):
    before, backend = contents(run_dir), Backend()
    trainer = Trainer(run_dir, 4, *at_step(run_dir, 4, "trainer.val_only=true"))
    trainer.logger = tracking = SimpleNamespace(logger={"console": backend})
    for each in tracking.logger.values():
        each.log(data={"val/digits/accuracy": 0.25}, step=4)
    after = contents(run_dir)
    line = json.loads(after.pop("validation.jsonl"))
    assert after == before
    assert line == {
        "step": 4,
        "checkpoint": str(run_dir / "global_step_4"),
        "data": {"val/digits/accuracy": 0.25},
    }
    assert backend.logged == [(4, {"val/digits/accuracy": 0.25})]


@pytest.mark.parametrize(
    ("step", "overrides", "expected"),
    [
        (6, (), True),
        (4, (), False),
        (6, ("trainer.val_only=true",), False),
        (6, ("trainer.test_freq=-1",), False),
        (6, ("trainer.resume_mode=disable",), False),
        (6, ("trainer.total_training_steps=null",), True),  # known once the data are loaded
    ],
)
def test_only_a_run_at_its_last_step_adds_a_missing_validation(run_dir, step, overrides, expected):
    assert Trainer(run_dir, step, *overrides).lacks_validation is expected


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Launch up to the training, which is given."""
    for name in TRACKERS:
        monkeypatch.delenv(name, raising=False)
    unchanged = (
        *("check_shared_memory", "check_loggers", "export_attention", "set_environment"),
        *("join_cluster", "use_temporary_folder", "validate_as_verl_does"),
    )
    for name in unchanged:
        monkeypatch.setattr(launch, name, lambda *_: None)
    monkeypatch.setattr(launch, "check_run", lambda config: [])
    console = contextlib.nullcontext(SimpleNamespace(log="console.log"))
    monkeypatch.setattr(launch, "open_console", lambda config: console)
    monkeypatch.setattr(launch, "guarded_run", lambda held: contextlib.nullcontext(tmp_path))

    def run(overrides, train):
        monkeypatch.setattr(launch, "train", lambda config, signals: train(config))
        launch.launch(compose_once("smoke", overrides))

    return run


def test_a_validation_leaves_the_runs_inputs_and_its_trackers_files(start, run_dir):
    before, given = contents(run_dir), {}

    def train(config):
        given.update(OmegaConf.select(config, ENV_VARS))

    start(at_step(run_dir, 4, "trainer.val_only=true"), train)
    after = contents(run_dir)
    assert {name: after[name] for name in before} == before
    assert given["TENSORBOARD_DIR"] == str(run_dir / "tensorboard" / "validation")
    assert given["VERL_FILE_LOGGER_PATH"] == str(run_dir / "verl_validation.jsonl")


def test_a_place_that_the_user_gave_to_a_tracker_is_kept(start, run_dir, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_DIR", "/mine")
    given = {}
    start(
        at_step(run_dir, 4, "trainer.val_only=true"),
        lambda config: given.update(OmegaConf.select(config, ENV_VARS)),
    )
    assert list(given) == ["VERL_FILE_LOGGER_PATH"]
    assert os.environ["TENSORBOARD_DIR"] == "/mine"


def test_a_training_run_keeps_its_trackers_where_they_are(start, tmp_path):
    seen = []
    start(
        [f"trainer.default_local_dir={tmp_path / 'new'}"],
        lambda config: seen.append(OmegaConf.select(config, ENV_VARS)),
    )
    assert seen == [None]


def test_nothing_is_validated_on_saved_rollouts(start, tmp_path):
    overrides = ["trainer.val_only=true", f"vapo.debug.train_only={tmp_path}"]
    with pytest.raises(launch.InputError, match=r"val_only=true with vapo\.debug\.train_only=.*;"):
        start(overrides, lambda config: None)


def test_a_stopped_run_that_its_command_does_not_resume_says_so(start, tmp_path):
    folder, configs = tmp_path / "new", []

    def train(config):
        configs.append(config)
        save(folder, 2)
        raise RunStopped(2)

    with pytest.raises(RunStopped):
        start([f"trainer.default_local_dir={folder}", "trainer.resume_mode=disable"], train)
    said = launch.after_a_stop(*configs, 2)
    assert f"Stopped on request at step 2. Saved: step 2, in {folder / 'global_step_2'}" in said
    assert "to go on with step 3, set trainer.resume_mode=auto" in said
    with pytest.raises(launch.InputError, match=r"set trainer\.resume_mode=auto"):
        start([f"trainer.default_local_dir={folder}", "trainer.resume_mode=disable"], train)


def test_a_stopped_run_that_its_command_resumes_is_only_stopped(start, tmp_path):
    def train(config):
        raise RunStopped(2)

    with pytest.raises(RunStopped):
        start([f"trainer.default_local_dir={tmp_path / 'new'}"], train)
