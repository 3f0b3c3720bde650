"""Run folders as the trainer writes them, with rows made up here."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from PIL import Image

from vapo_verl.run_folder.layout import METRICS_FILE, write_config
from vapo_verl.run_folder.metrics import MetricsFile
from vapo_verl.run_folder.rollouts import write_rollouts

TEXT = "<think> left is blue 6 . </think> \\boxed{6}"


def rollout_row(step: int = 1, index: int = 0, sample: int = 0, **cells) -> dict:
    """One sampled response of 8 tokens with two anchors, right unless `accuracy` is 0."""
    tokens = [f"{word} " for word in TEXT.split()]
    accuracy = cells.pop("accuracy", 1.0)
    row = {
        "step": step,
        "uid": f"{step:06d}-{index:05d}",
        "sample": sample,
        "data_source": "digits",
        "index": index,
        "prompt": "Which digit is left?",
        "images": None,
        "response": TEXT,
        "prompt_ids": [1, 2],
        "response_ids": list(range(len(tokens))),
        "tokens": tokens,
        "visual_attention": [0.8, 0.8, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1],
        "visual_attention_layers": None,
        "advantages": [0.0] * len(tokens),
        "rollout_log_probs": [-0.1] * len(tokens),
        "old_log_probs": [-0.1] * len(tokens),
        "ground_truth": "6",
        "reward": {"accuracy": accuracy, "format": 1.0, "perception": 0.5, "total": accuracy + 1},
        "anchors": [anchor(2, label=True, p_yes=0.9), anchor(6, label=False, p_yes=0.6)],
    }
    return row | cells


def anchor(position: int, *, label: bool, p_yes: float, claim: str = "A 6 is left.") -> dict:
    answer = p_yes > 0.5
    return {
        "position": position,
        "claim": claim,
        "label": label,
        "answer": answer,
        "correct": answer == label,
        "p_yes": p_yes,
    }


def write_run(
    run_dir: Path, steps: dict[int, list[dict]], metrics: dict[int, dict] | None = None
) -> Path:
    """`steps` are rows of the rollout files; `metrics` one line a step."""
    write_config(run_dir, OmegaConf.create({"vapo": {"attention": {"layers": None}}}), 0)
    for step, rows in steps.items():
        write_rollouts(run_dir, step, rows)
    file = MetricsFile(run_dir / METRICS_FILE, resumed_step=0)
    for step, data in (metrics or {}).items():
        file.log(data, step)
    return run_dir


def write_early_decision(run_dir: Path, right: Sequence[str]) -> Path:
    """One row of the data for each string, and one cut for each of its letters: + is right."""
    folder = run_dir / "diagnostics" / "early-decision"
    folder.mkdir(parents=True)
    with (folder / "rows.jsonl").open("w") as file:
        for number, cuts in enumerate(right):
            record = _early_record(number, [mark == "+" for mark in cuts])
            file.write(json.dumps(record) + "\n")
    return folder


def _early_record(number: int, right: Sequence[bool]) -> dict:
    last = len(right) - 1
    cuts = [
        {"target": i / last, "position": 4 * i, "answer": "6" if ok else "5", "right": ok}
        for i, ok in enumerate(right)
    ]
    return {
        "row": number,
        "data_source": "digits",
        "index": number,
        "ground_truth": "6",
        "response": TEXT,
        "num_tokens": 8,
        "reasoning": [0, 4 * last],
        "finish": "stop",
        "answer": cuts[-1]["answer"],
        "right": right[-1],
        "cuts": cuts,
    }


def png(width: int, height: int, colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()
