"""What a run leaves behind can be read back, and survives a resume."""

import json

import numpy as np
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from vapo_verl.run_folder.layout import write_config
from vapo_verl.run_folder.metrics import MetricsFile
from vapo_verl.run_folder.rollouts import LAYERS_KEY, write_rollouts


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


def test_a_fresh_start_in_an_old_folder_starts_the_file_afresh(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, resumed_step=0).log({"x": 1}, 1)
    MetricsFile(path, resumed_step=0).log({"x": 2}, 0)
    assert steps(path) == [0]


def test_the_config_is_written_resolved(tmp_path):
    config = OmegaConf.create({"a": 1, "b": "${a}"})
    write_config(tmp_path / "run", config)
    assert OmegaConf.load(tmp_path / "run" / "config.yaml") == {"a": 1, "b": 1}


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
