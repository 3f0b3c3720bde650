"""Saving the model in bfloat16 and loading it in float32."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor


def save_model(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, folder: Path
) -> None:
    """Write all that loading needs, weights rounded to bfloat16; the model itself stays as is."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def load_model(folder: Path) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """Load model and processor for evaluation, in float32."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def write_json(path: Path, data: object) -> None:
    """Write indented JSON that ends with a newline."""
    path.write_text(json.dumps(data, indent=2) + "\n")
