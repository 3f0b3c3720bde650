"""A model's size and vision tokens, read from its files without loading weights."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vapo_verl.doctor.model_shape import (
    KNOWN_SHAPES,
    ModelShape,
    nearest_shape,
    shape_from_folder,
)

BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1}
NAME_FACTOR = 1.2
"""A name counts the decoder's parameters; the vision tower and the embeddings add to that."""
DTYPE_BYTES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Parameters of a model."""

    num_parameters: float
    source: str
    """The source of the number, for messages."""

    def __str__(self) -> str:
        return f"{self.num_parameters / 1e6:,.1f} million parameters ({self.source})"


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionTokenGeometry:
    """Conversion of pixels to image tokens."""

    pixels_per_token: int
    """(patch_size * merge_size)^2: 28^2 for Qwen2-VL and Qwen2.5-VL, 32^2 for Qwen3-VL."""
    max_pixels: int | None
    """The processor's limit if no setting overrides it."""


def model_folder(config: DictConfig) -> Path | None:
    """The folder of the run's model: a path, or a hub name that is in the local cache."""
    name = config.actor_rollout_ref.model.path
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    hub = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"
    hub = Path(os.environ.get("HF_HUB_CACHE", hub))
    found = sorted(hub.glob(f"models--{name.replace('/', '--')}/snapshots/*/config.json"))
    return found[-1].parent if found else None


def model_size(config: DictConfig) -> ModelSize | None:
    """Parameters from the safetensors headers, else the shape, else the name; None: unknown."""
    folder, name = model_folder(config), config.actor_rollout_ref.model.path
    files = sorted(folder.glob("*.safetensors")) if folder else []
    if files:
        number = sum(_parameters_in(file) for file in files)
        return ModelSize(num_parameters=number, source="its safetensors files")
    shape = shape_from_folder(folder) if folder else KNOWN_SHAPES.get(name)
    if shape is not None:
        source = "its config.json" if folder else "its published shape"
        return ModelSize(num_parameters=shape.num_parameters, source=source)
    match = re.search(r"(\d+(?:\.\d+)?)b\b", name.lower())
    if not match:
        return None
    return ModelSize(num_parameters=float(match[1]) * 1e9 * NAME_FACTOR, source="by its name")


def model_shape(config: DictConfig) -> ModelShape | None:
    """The shape from config.json, else from the table, else of the known model nearest in size.

    None if the model's size is unknown.
    """
    folder = model_folder(config)
    shape = shape_from_folder(folder) if folder else None
    shape = shape or KNOWN_SHAPES.get(config.actor_rollout_ref.model.path)
    if shape is not None:
        return shape
    size = model_size(config)
    return nearest_shape(size.num_parameters) if size else None


def _parameters_in(file: Path) -> int:
    """Elements of all tensors, from the header: 8 bytes of length, then JSON."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    return sum(
        (entry["data_offsets"][1] - entry["data_offsets"][0]) // BYTES.get(entry["dtype"], 2)
        for entry in header.values()
    )


def vision_tokens(folder: Path | None) -> VisionTokenGeometry:
    """Read the processor's file; Qwen2.5-VL's values if there is none."""
    values = _processor_values(folder)
    patch, merge = values.get("patch_size", 14), values.get("merge_size", 2)
    limit = values.get("max_pixels") or (values.get("size") or {}).get("longest_edge")
    return VisionTokenGeometry(pixels_per_token=(patch * merge) ** 2, max_pixels=limit)


def _processor_values(folder: Path | None) -> dict[str, Any]:
    for name in ("processor_config.json", "preprocessor_config.json"):
        if folder and (folder / name).is_file():
            content = json.loads((folder / name).read_text())
            values = content.get("image_processor", content)
            if "patch_size" in values:
                return values
    return {}


def dtype_bytes(name: object) -> int:
    """Bytes of an element; 4, the larger guess, for an unknown name (auto, half, ...)."""
    return DTYPE_BYTES.get(str(name), 4)


def parameter_bytes(config: DictConfig) -> int:
    """b of the formulas: a parameter as FSDP holds it; gradient and moments have its type."""
    return dtype_bytes(config.actor_rollout_ref.actor.fsdp_config.model_dtype)


def has_reference(config: DictConfig) -> bool:
    """Whether a run loads a reference model: only a KL term needs one."""
    return bool(config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward)
