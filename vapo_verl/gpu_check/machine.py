"""Describe the machine as JSON on standard output; a separate process, since it imports torch."""

import importlib
import json
import os
import platform
from importlib import metadata

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "vllm",
    "verl",
    "ray",
    "flash-attn",
    "flashinfer-python",
)


def describe() -> dict[str, str | int | None]:
    """GPUs, driver side and versions; ``gpus`` is 0 where torch sees no CUDA device."""
    torch = importlib.import_module("torch")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    facts: dict[str, str | int | None] = {"gpus": count}
    if count:
        properties = torch.cuda.get_device_properties(0)
        major, minor = torch.cuda.get_device_capability(0)
        facts |= {
            "gpu": properties.name,
            "memory_gib": round(properties.total_memory / 2**30),
            "capability": f"{major}.{minor}",
        }
    facts |= {
        "cuda": torch.version.cuda,
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
    return facts | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(describe()))
