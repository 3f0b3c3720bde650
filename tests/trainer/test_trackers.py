"""veRL's tracking backends write into the run folder, Weights & Biases offline without a key."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from vapo_verl.trainer.trackers import StepEnd, check_trackers, prepare_trackers, tell_resumed

VARIABLES = ("TENSORBOARD_DIR", "VERL_FILE_LOGGER_PATH", "WANDB_DIR", "WANDB_MODE", "WANDB_API_KEY")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no netrc
    yield
    for name in VARIABLES:
        os.environ.pop(name, None)


def test_no_key_means_offline_and_says_so(tmp_path, capsys):
    prepare_trackers(tmp_path, ["wandb"])
    assert os.environ["WANDB_MODE"] == "offline"
    assert "wandb sync" in capsys.readouterr().out


def test_a_key_or_an_explicit_mode_is_respected(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    prepare_trackers(tmp_path, ["wandb"])
    assert "WANDB_MODE" not in os.environ
    monkeypatch.setenv("WANDB_MODE", "disabled")
    prepare_trackers(tmp_path, ["wandb"])
    assert os.environ["WANDB_MODE"] == "disabled"


def test_a_key_of_ones_own_server_is_found_where_wandb_finds_it(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text(f"machine wandb.corp:8080 login user password {'x' * 40}")
    netrc.chmod(0o600)
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.corp:8080")
    prepare_trackers(tmp_path, ["wandb"])
    assert "WANDB_MODE" not in os.environ
    monkeypatch.setenv("WANDB_BASE_URL", "https://api.wandb.ai")
    prepare_trackers(tmp_path, ["wandb"])
    assert os.environ["WANDB_MODE"] == "offline"


@pytest.mark.parametrize(
    ("loggers", "others"),
    [(["tensorboard", "wandb"], "[tensorboard]"), (["wandb"], "[]")],
)
def test_a_backend_that_is_not_installed_is_an_error_with_the_fix(monkeypatch, loggers, others):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="wandb needs the package wandb") as error:
        check_trackers(loggers)
    assert "`pip install wandb`" in str(error.value)
    assert f"or set trainer.logger={others} " in str(error.value)


def test_nothing_is_asked_of_packages_that_no_logger_names(monkeypatch, tmp_path):
    for package in ("wandb", "tensorboard", "mlflow"):
        monkeypatch.setitem(sys.modules, package, None)
    check_trackers(["console", "file"])
    with pytest.raises(ValueError, match=r"logger=\[console,tensorbord\]: 'tensorbord' is"):
        check_trackers(["console", "tensorbord"])
    prepare_trackers(tmp_path, ["console", "file"])


def test_verls_tracking_logs_to_real_backends_in_the_run_folder(tmp_path, new_wandb_session):
    from verl.utils.tracking import Tracking

    loggers = ["console", "file", "tensorboard", "wandb"]
    prepare_trackers(tmp_path, loggers)
    tracking = Tracking("vapo_verl", "test", loggers, config={"trainer": {}})
    tracking.log({"vapo/reward/total": 1.5}, step=1)
    tracking.finish()
    assert "1.5" in (tmp_path / "verl_metrics.jsonl").read_text()
    assert list((tmp_path / "tensorboard").glob("events.*"))
    [run] = (tmp_path / "wandb").glob("offline-run-*")
    reader = [
        str(Path(sys.executable).with_name("wandb")),
        "leet",
        "inspect",
        "--summary",
        str(run),
    ]
    summary = subprocess.run(reader, capture_output=True, text=True, check=True).stdout
    assert re.search(r"vapo/reward/total\s+1\.5", summary)


def test_a_resumed_run_keeps_the_lines_of_the_file_logger(tmp_path):
    from verl.utils.tracking import Tracking

    for step in (1, 2, 3):
        os.environ.pop("VERL_FILE_LOGGER_PATH", None)  # as in a process of its own
        prepare_trackers(tmp_path, ["file"])
        tracking = Tracking("vapo_verl", "test", ["file"], config={"trainer": {}})
        tracking.log({"x": 0.5}, step=step)
        tracking.finish()
    files = [tmp_path / f"verl_metrics{number}.jsonl" for number in ("", ".2", ".3")]
    assert [json.loads(path.read_text())["step"] for path in files] == [1, 2, 3]


class TensorBoard:
    """As veRL's adapter."""

    def __init__(self, folder: Path) -> None:
        self.writer = SummaryWriter(str(folder))

    def log(self, data: dict[str, float], step: int) -> None:
        for name, value in data.items():
            self.writer.add_scalar(name, value, step)


def logged(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("x")]


def test_tensorboard_holds_a_repeated_step_once(tmp_path):
    first = TensorBoard(tmp_path)
    tell_resumed({"tensorboard": first}, 0)
    for step in (1, 2, 3):
        first.log({"x": 1.0}, step)
        StepEnd({"tensorboard": first}, lambda: None).log({}, step)
    time.sleep(1.1)  # the order of the files is that of their seconds
    second = TensorBoard(tmp_path)  # the first was killed: its file is not closed
    tell_resumed({"tensorboard": second}, 2)
    second.log({"x": 2.0}, 3)
    StepEnd({"tensorboard": second}, lambda: None).log({}, 3)
    assert logged(tmp_path) == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_events_are_on_the_disk_before_the_checkpoint_is_complete(tmp_path):
    board = TensorBoard(tmp_path)
    board.log({"x": 1.0}, 1)
    seen = []
    StepEnd({"tensorboard": board}, lambda: seen.extend(logged(tmp_path))).log({}, 1)
    assert seen == [(1, 1.0)]


def test_wandb_is_told_where_a_run_resumes(tmp_path, new_wandb_session):
    import wandb

    with wandb.init(mode="offline", dir=tmp_path) as run:
        tell_resumed({"wandb": wandb}, 4)
        assert run.config["resumed_after_step"] == 4
        tell_resumed({"wandb": wandb}, 8)  # the same run again, by WANDB_RUN_ID
        assert run.config["resumed_after_step"] == 8
