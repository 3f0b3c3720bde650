"""What a run shows of itself, and that no fault in it ends the run."""

import os
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

from tests.report.run_folders import rollout_row, write_run
from vapo_verl.report.__main__ import main as report_command
from vapo_verl.report.live import KEY_PANELS, KeyPictures, write_final_report

METRICS = {"vapo/reward/total": 1.5, "vapo/reward/accuracy": 0.5}


class Wandb:
    """What veRL holds under `wandb`: the module, of which two names are used."""

    def __init__(self, fault=None):
        self.logged, self.fault = [], fault

    def Image(self, image):
        return image.size

    def log(self, data, step):
        if self.fault:
            raise self.fault
        self.logged += [(name, size, step) for name, size in data.items()]


@pytest.fixture
def run(tmp_path):
    steps = range(1, 8)
    rows = {step: [rollout_row(step)] for step in steps}
    return write_run(tmp_path / "run", rows, dict.fromkeys(steps, METRICS))


def test_pictures_are_sent_every_so_many_steps_and_at_the_last(run):
    wandb = Wandb()
    pictures = KeyPictures(run, {"wandb": wandb}, freq=3, last_step=7)
    for step in range(8):
        pictures.log({}, step)
    assert [(name, step) for name, _, step in wandb.logged] == [
        (f"report/{name}", step) for step in (3, 6, 7) for name in KEY_PANELS
    ]
    assert {size for _, size, _ in wandb.logged} == {(640, 400)}


def test_pictures_show_the_rollouts_since_the_last_ones(tmp_path, monkeypatch):
    steps = {step: [rollout_row(step)] * step for step in (1, 2, 3, 4)}
    run = write_run(tmp_path / "run", steps, {1: METRICS})
    shown = []
    monkeypatch.setattr("vapo_verl.plots.matplotlib_figure.picture", shown.append)
    monkeypatch.setattr("vapo_verl.report.live.send_to_wandb", lambda *_: None)
    pictures = KeyPictures(run, {"wandb": None}, freq=2, last_step=100)
    pictures.log({}, 2)
    pictures.log({}, 4)
    texts = [p.series[0].texts[0] for p in shown if p.title == "Anchor accuracy by position"]
    assert texts == ["3 of 3", "7 of 7"]


def test_what_was_not_sampled_is_left_out(tmp_path):
    wandb = Wandb()
    run = write_run(tmp_path / "run", {}, {1: METRICS})
    KeyPictures(run, {"wandb": wandb}, freq=1, last_step=1).log({}, 1)
    assert [name for name, _, _ in wandb.logged] == ["report/Reward"]


def test_no_pictures_are_drawn_for_nobody(run, monkeypatch):
    monkeypatch.setattr(KeyPictures, "pictures", lambda *_: pytest.fail("drawn"))
    KeyPictures(run, {"console": object()}, freq=1, last_step=7).log({}, 1)
    KeyPictures(run, {"wandb": Wandb()}, freq=0, last_step=7).log({}, 7)


def test_a_fault_is_said_once_and_the_run_goes_on(run, capsys):
    broken = Wandb(fault=ConnectionError("no route"))
    pictures = KeyPictures(run, {"wandb": broken}, freq=1, last_step=7)
    pictures.log({}, 1)
    pictures.log({}, 2)
    assert capsys.readouterr().out.count("WARNING: no pictures for the trackers") == 1


def hide(monkeypatch, package):
    """Make imports of a package fail as where it is not installed."""
    loaded = [name for name in sys.modules if name == package or name.startswith(f"{package}.")]
    for name in {package, *loaded}:
        monkeypatch.setitem(sys.modules, name, None)


def test_without_matplotlib_there_are_no_pictures_and_it_is_said_once(run, monkeypatch, capsys):
    hide(monkeypatch, "matplotlib")
    monkeypatch.delitem(sys.modules, "vapo_verl.plots.matplotlib_figure", raising=False)
    pictures = KeyPictures(run, {"wandb": Wandb()}, freq=1, last_step=7)
    for step in range(1, 8):
        pictures.log({}, step)
    said = "[vapo] WARNING: no pictures for the trackers: matplotlib is not installed"
    assert capsys.readouterr().out == f"{said}; `pip install matplotlib`\n"


def test_without_plotly_a_run_ends_with_one_line_in_place_of_the_report(run, monkeypatch, capsys):
    hide(monkeypatch, "plotly")
    write_final_report(run)
    assert capsys.readouterr().out == (
        "[vapo] WARNING: no report.html: plotly is not installed; `pip install plotly`, then "
        f"`python -m vapo_verl.report {run}`\n"
    )
    assert not (run / "report.html").exists()


def test_without_plotly_the_command_says_what_to_install(run, monkeypatch, capsys):
    hide(monkeypatch, "plotly")
    assert report_command([str(run)]) == 2
    assert capsys.readouterr().err == "plotly is not installed; `pip install plotly`\n"


def test_tensorboard_holds_them_as_images(run, monkeypatch):
    from verl.utils.tracking import Tracking

    monkeypatch.setenv("TENSORBOARD_DIR", str(run / "tensorboard"))
    tracking = Tracking("vapo_verl", "test", ["tensorboard"], config={})
    KeyPictures(run, tracking.logger, freq=7, last_step=7).log({}, 7)
    tracking.finish()
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={IMAGES: 0})
    events.Reload()
    assert sorted(events.Tags()[IMAGES]) == sorted(f"report/{name}" for name in KEY_PANELS)
    [image] = events.Images("report/Reward")
    assert (image.step, image.width, image.height) == (7, 640, 400)


def test_wandb_keeps_them_in_the_run_folder(run, monkeypatch, new_wandb_session):
    from verl.utils.tracking import Tracking

    monkeypatch.setenv("WANDB_DIR", str(run))
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracking = Tracking("vapo_verl", "test", ["wandb"], config={"trainer": {}})
    tracking.log(METRICS, step=7)
    KeyPictures(run, tracking.logger, freq=7, last_step=7).log({}, 7)
    tracking.finish()
    assert len(list((run / "wandb").glob("offline-run-*/files/media/images/report/*.png"))) == 4


def test_the_report_is_written_when_a_run_has_ended(run, tmp_path, capsys):
    write_final_report(run)
    assert "Visual attention by progress" in (run / "report.html").read_text(encoding="utf-8")
    write_final_report(tmp_path / "none")
    assert "WARNING: no report.html: RunError" in capsys.readouterr().out


WITHOUT_PACKAGES = """
import sys
from importlib.machinery import PathFinder

found = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    absent = name.partition(".")[0] in ("wandb", "plotly", "matplotlib")
    return None if absent else found(name, path, target)

PathFinder.find_spec = staticmethod(find_spec)
from pathlib import Path

import vapo_verl.trainer.task_runner
import vapo_verl.trainer.trainer
from verl.utils.tracking import Tracking
from vapo_verl.report.live import KeyPictures, write_final_report
from vapo_verl.trainer.trackers import prepare_trackers

run = Path(sys.argv[1])
prepare_trackers(run, ["tensorboard"])
tracking = Tracking("vapo_verl", "test", ["tensorboard"], config={})
tracking.log({"vapo/reward/total": 1.5}, step=7)
KeyPictures(run, tracking.logger, freq=7, last_step=7).log({}, 7)
tracking.finish()
write_final_report(run)
"""


def test_a_trainer_works_where_wandb_plotly_and_matplotlib_are_not_installed(run):
    environment = {k: v for k, v in os.environ.items() if k != "TENSORBOARD_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGES, str(run)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    ours = [line for line in done.stdout.splitlines() if "WARNING: no " in line]
    assert [line.partition(" is not installed")[0] for line in ours] == [
        "[vapo] WARNING: no pictures for the trackers: matplotlib",
        "[vapo] WARNING: no report.html: plotly",
    ], done.stdout
    assert list((run / "tensorboard").rglob("events.*"))
