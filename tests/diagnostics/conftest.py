"""Run folders as the trainer writes them, with rows made up here."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vapo_verl.trainer.run_folder import METRICS_FILE, MetricsFile, write_config, write_rollouts

TEXT = "<think> left is blue 6 . </think> \\boxed{6}"


def _rollout_row(step: int = 1, index: int = 0, sample: int = 0, **cells) -> dict:
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
        "anchors": [_anchor(2, label=True, p_yes=0.9), _anchor(6, label=False, p_yes=0.6)],
    }
    return row | cells


def _anchor(position: int, *, label: bool, p_yes: float, claim: str = "A 6 is left.") -> dict:
    answer = p_yes > 0.5
    return {
        "position": position,
        "claim": claim,
        "label": label,
        "answer": answer,
        "correct": answer == label,
        "p_yes": p_yes,
    }


def _write_run(
    run_dir: Path, steps: dict[int, list[dict]], metrics: dict[int, dict] | None = None
) -> Path:
    """`steps` are rows of the rollout files; `metrics` one line a step."""
    write_config(run_dir, OmegaConf.create({"vapo": {"attention": {"layers": None}}}))
    for step, rows in steps.items():
        write_rollouts(run_dir, step, rows)
    file = MetricsFile(run_dir / METRICS_FILE, resumed_step=0)
    for step, data in (metrics or {}).items():
        file.log(data, step)
    return run_dir


@pytest.fixture
def rollout_row() -> Callable[..., dict]:
    """`rollout_row(step, index, sample, **cells)` -> a row of a rollout file."""
    return _rollout_row


@pytest.fixture
def anchor() -> Callable[..., dict]:
    """`anchor(position, label=.., p_yes=.., claim=..)` -> one of a row's anchors."""
    return _anchor


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(name, steps, metrics)` -> run folder."""
    return lambda name, steps, metrics=None: _write_run(tmp_path / name, steps, metrics)
