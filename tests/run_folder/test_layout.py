"""What a run leaves behind can be read back, and survives a resume."""

import json
import os
import subprocess
from contextlib import suppress

import numpy as np
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from tests.checkpoints import mark_complete
from vapo_verl.run_folder import RunFolderError
from vapo_verl.run_folder.checkpoints import checkpoint_folder, latest_complete, prepare_resume
from vapo_verl.run_folder.layout import config_file, write_config
from vapo_verl.run_folder.metrics import MetricsFile, ValidationFile
from vapo_verl.run_folder.rollouts import LAYERS_KEY, remove_rollouts_after, write_rollouts


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_line_holds_the_step_and_its_numbers(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", resumed_step=0)
    file.log({"a": np.float64(0.5), "b": 2, "c": float("nan"), "d": "text"}, step=3)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"step": 3, "data": {"a": 0.5, "b": 2, "c": None}}


def test_a_resume_keeps_what_the_checkpoint_holds_and_drops_what_is_run_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, resumed_step=0)
    for step in (0, 1, 2, 3, 4):
        first.log({"x": step}, step)
    with path.open("a") as file:
        file.write('{"step": 5, "da')  # killed while writing
    resumed = MetricsFile(path, resumed_step=3)
    resumed.log({"x": 4}, 4)
    assert steps(path) == [0, 1, 2, 3, 4]


def test_a_step_that_is_logged_again_has_one_line_with_all_its_values(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, resumed_step=0)
    first.log({"x": 1, "y": 1}, 1)
    first.log({"x": 2}, 2)
    resumed = MetricsFile(path, resumed_step=2)
    resumed.log({"z": 3, "x": 5}, 2)  # the validation that a kill prevented
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"step": 1, "data": {"x": 1, "y": 1}},
        {"step": 2, "data": {"x": 5, "z": 3}},
    ]


def test_a_resume_says_which_steps_have_no_line_and_merges_double_ones(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [(1, 1), (1, 2), (3, 3), (5, 5)]  # two runs in one folder, and a gap at 2 and 4
    path.write_text("".join(f'{{"step": {s}, "data": {{"x": {x}}}}}\n' for s, x in records))
    assert MetricsFile(path, resumed_step=4).missing_steps == [2, 4]
    assert path.read_text() == '{"step": 1, "data": {"x": 2}}\n{"step": 3, "data": {"x": 3}}\n'


def test_a_resume_leaves_lines_as_they_were_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, 0).log({"a": 1 / 3, "b": 2, "c": float("inf"), "d": True, "e": 1e-30}, 1)
    before = path.read_bytes()
    assert MetricsFile(path, 1).missing_steps == []
    assert path.read_bytes() == before


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 64 KiB; fill(): nothing more fits."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder):
    with suppress(OSError), (folder / "fill").open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 4096)


def test_a_full_disk_is_named_and_leaves_no_half_a_line(full_disk):
    path = full_disk / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    metrics.log({"x": 1.0}, 1)
    fill(full_disk)
    before = path.read_bytes()
    long = {f"metric_{i}": 1.0 for i in range(500)}
    with pytest.raises(RunFolderError, match="No space left") as caught:
        metrics.log(long, 2)
    assert f"could not write {path}" in caught.value.message
    assert "the same command resumes" in caught.value.message
    assert path.read_bytes() == before
    with pytest.raises(RunFolderError, match="No space left"):
        write_rollouts(full_disk, 2, [{"step": 2, "response": "x" * 100_000}])
    (full_disk / "fill").unlink()
    metrics.log(long, 2)
    assert steps(path) == [1, 2]


def test_rollouts_of_steps_that_are_run_again_go(tmp_path):
    for step in (1, 2, 3):
        write_rollouts(tmp_path, step, [{"step": step}])
    folder = tmp_path / "rollouts"
    (folder / "step_000004.partial").touch()
    (folder / "step_notes.parquet").touch()
    remove_rollouts_after(tmp_path, 2)
    assert sorted(path.name for path in folder.iterdir()) == [
        "step_000001.parquet",
        "step_000002.parquet",
        "step_notes.parquet",
    ]


def test_a_fresh_start_in_an_old_folder_starts_the_file_afresh(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, resumed_step=0).log({"x": 1}, 1)
    MetricsFile(path, resumed_step=0).log({"x": 2}, 0)
    assert steps(path) == [0]


def test_the_config_is_written_resolved(tmp_path):
    config = OmegaConf.create({"a": 1, "b": "${a}"})
    write_config(tmp_path / "run", config, 0)
    assert OmegaConf.load(tmp_path / "run" / "config.yaml") == {"a": 1, "b": 1}


def begin(run_dir, name):
    """A start after the newest complete checkpoint."""
    write_config(run_dir, OmegaConf.create({"name": name}), latest_complete(run_dir) or 0)


def name_of(run_dir, step):
    """In the config of a step."""
    return OmegaConf.load(config_file(run_dir, step)).name


@pytest.mark.parametrize("removed", [(60, 100), (100,), (40, 60, 100)])
def test_steps_that_are_run_again_have_the_new_config(tmp_path, removed):
    """Also if a later config was kept for steps whose checkpoints were removed."""
    for name, step in (("a", 40), ("b", 60), ("c", 100)):
        begin(tmp_path, name)
        checkpoint_folder(tmp_path, step).mkdir()
        mark_complete(tmp_path, step)
    for step in removed:
        checkpoint_folder(tmp_path, step).rename(tmp_path / f"moved_{step}")
    begin(tmp_path, "new")
    found = {step: name_of(tmp_path, step) for step in (40, 60, 61, 120)}
    kept = {40: "a", 60: "b"}
    assert found == {step: "new" if step in {*removed, 61, 120} else kept[step] for step in found}


def test_a_config_of_which_only_the_first_steps_are_left_ends_with_them(tmp_path):
    for name, step in (("a", 40), ("a", 60), ("b", 100)):
        begin(tmp_path, name)
        checkpoint_folder(tmp_path, step).mkdir()
        mark_complete(tmp_path, step)
    for step in (60, 100):
        (checkpoint_folder(tmp_path, step) / "complete.json").unlink()
    begin(tmp_path, "new")
    assert sorted(path.name for path in tmp_path.glob("config*")) == [
        *("config.step_40.yaml", "config.yaml"),
    ]
    assert [name_of(tmp_path, step) for step in (40, 41)] == ["a", "new"]


@pytest.mark.parametrize("killed", [False, True])
def test_steps_after_a_damaged_checkpoint_have_the_config_that_trains_them_again(tmp_path, killed):
    """Step 40 is damaged: a start with another config goes on from step 20."""
    for step in (20, 40):
        begin(tmp_path, "old")
        checkpoint_folder(tmp_path, step).mkdir()
        (checkpoint_folder(tmp_path, step) / "data.pt").write_text("rows")
        mark_complete(tmp_path, step)
    (checkpoint_folder(tmp_path, 40) / "data.pt").write_text("dust")
    if killed:  # after it has set the checkpoint aside
        prepare_resume(tmp_path, print)
        assert name_of(tmp_path, 20) == "old"
    step = prepare_resume(tmp_path, print).step
    write_config(tmp_path, OmegaConf.create({"name": "new"}), step)
    assert [name_of(tmp_path, step) for step in (20, 21)] == ["old", "new"]
    mark_complete(tmp_path, 40)
    begin(tmp_path, "newer")
    assert [name_of(tmp_path, step) for step in (20, 40, 41)] == ["old", "new", "newer"]


def test_validations_have_a_file_of_their_own_that_only_grows(tmp_path):
    path = tmp_path / "validation.jsonl"
    ValidationFile(path, tmp_path / "global_step_40").log({"val/x/accuracy": 0.5, "text": "x"}, 40)
    ValidationFile(path, None).log({"val/x/accuracy": float("nan")}, 0)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    folder = str(tmp_path / "global_step_40")
    assert first == {"step": 40, "checkpoint": folder, "data": {"val/x/accuracy": 0.5}}
    assert second == {"step": 0, "checkpoint": None, "data": {"val/x/accuracy": None}}


def test_rollouts_are_read_back_as_written(tmp_path):
    row = {
        "step": 2,
        "uid": "000002-00001",
        "sample": 0,
        "data_source": "digits",
        "index": 5,
        "prompt": "Sum?",
        "images": [b"encoded", None],
        "response": "<think>.</think>",
        "prompt_ids": [1, 7],
        "response_ids": [4, 9],
        "tokens": ["<think>", "."],
        "visual_attention": [0.25, 0.5],
        "visual_attention_layers": [[0.25, 0.25], [0.0, 1.0]],
        "advantages": [1.0, 1.0],
        "rollout_log_probs": [-0.25, -0.5],
        "old_log_probs": [-0.25, -0.5],
        "min_policy_version": 0,
        "max_policy_version": 1,
        "probe_policy_version": 1,
        "ground_truth": "3",
        "reward": {"accuracy": 1.0, "format": 1.0, "perception": 0.5, "total": 2.05},
        "anchors": [
            {
                "position": 2,
                "claim": "c",
                "label": True,
                "answer": False,
                "correct": False,
                "p_yes": 0.25,
            }
        ],
    }
    write_rollouts(tmp_path, 2, [row], layers=[3, 10])
    [path] = (tmp_path / "rollouts").iterdir()
    assert path.name == "step_000002.parquet"
    table = pq.read_table(path)
    assert table.to_pylist() == [row]
    assert table.schema.metadata[LAYERS_KEY.encode()] == b"[3, 10]"
