"""A small Qwen2.5-VL that can read grids of digits, and the recipe that made it.

Its weights are part of the package (`model_dir`), so that the demo and the end-to-end tests start
from a model that answers in the right format, is right now and then, and judges claims better than
chance.
"""

from __future__ import annotations

from pathlib import Path


def model_dir() -> Path:
    """Return the folder of the packaged model, for `from_pretrained` or `vllm.LLM`."""
    return Path(__file__).parent / "digits"
