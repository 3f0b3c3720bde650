"""What a run leaves behind: its resolved config, its metrics, samples of its rollouts."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf

from vapo_verl.trainer.checkpoints import write_atomically

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
ROLLOUT_FOLDER = "rollouts"
REPORT_FILE = "report.html"
LAYERS_KEY = "visual_attention_layers"

ROLLOUT_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("uid", pa.string()),
        ("sample", pa.int64()),
        ("data_source", pa.string()),
        ("index", pa.int64()),
        ("prompt", pa.string()),
        ("images", pa.list_(pa.binary())),  # PNG or JPEG, scaled down; null where unreadable
        ("response", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("tokens", pa.list_(pa.string())),
        ("visual_attention", pa.list_(pa.float32())),
        ("visual_attention_layers", pa.list_(pa.list_(pa.float32()))),  # [tokens][layers] or null
        ("advantages", pa.list_(pa.float32())),
        ("rollout_log_probs", pa.list_(pa.float32())),
        ("old_log_probs", pa.list_(pa.float32())),
        ("ground_truth", pa.string()),
        (
            "reward",
            pa.struct(
                [(part, pa.float64()) for part in ("accuracy", "format", "perception", "total")]
            ),
        ),
        (
            "anchors",
            pa.list_(
                pa.struct(
                    [
                        ("position", pa.int64()),
                        ("claim", pa.string()),
                        ("label", pa.bool_()),
                        ("answer", pa.bool_()),
                        ("correct", pa.bool_()),
                        ("p_yes", pa.float64()),
                    ]
                )
            ),
        ),
    ]
)
"""One row per sampled response; positions count its tokens."""


def write_config(run_dir: Path, config: DictConfig) -> None:
    """The config as it was run, every reference resolved."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / CONFIG_FILE, OmegaConf.to_yaml(config, resolve=True))


def rollout_file(run_dir: Path, step: int) -> Path:
    return run_dir / ROLLOUT_FOLDER / f"step_{step:06d}.parquet"


def write_rollouts(
    run_dir: Path,
    step: int,
    rows: Sequence[Mapping[str, Any]],
    layers: Sequence[int] | None = None,
) -> None:
    """Sampled responses of one step, as :func:`rollout_file`.

    Args:
        layers: the model's layers that ``visual_attention_layers`` has a column of each; the file
            keeps them as JSON in its metadata, under ``LAYERS_KEY``.
    """
    schema = ROLLOUT_SCHEMA
    if layers is not None:
        schema = schema.with_metadata({LAYERS_KEY: json.dumps(list(layers))})
    path = rollout_file(run_dir, step)
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), partial)
    partial.replace(path)


class MetricsFile:
    """``metrics.jsonl``: one ``{"step": .., "data": {..}}`` a line, as veRL's file logger writes.

    Unlike that logger it survives a resume: what the run logged up to the resumed step stays, and
    what it logged after its last checkpoint is dropped, because those steps are run again. A value
    that is not finite is written as null.
    """

    def __init__(self, path: Path, resumed_step: int) -> None:
        self._path = path
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _kept(line, resumed_step)]
            write_atomically(path, "".join(f"{line}\n" for line in lines))

    def log(self, data: Mapping[str, Any], step: int) -> None:
        """Append one step."""
        numbers_only = {key: _finite(value) for key, value in data.items() if _is_number(value)}
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "data": numbers_only}) + "\n")


def _kept(line: str, resumed_step: int) -> bool:
    try:
        return resumed_step > 0 and json.loads(line)["step"] <= resumed_step
    except (json.JSONDecodeError, KeyError):
        return False  # the line a killed process did not finish


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Number)


def _finite(value: Any) -> float | int | None:
    value = value.item() if hasattr(value, "item") else value
    return value if math.isfinite(value) else None
