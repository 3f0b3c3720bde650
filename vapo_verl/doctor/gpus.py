"""GPUs as the driver's `nvidia-smi` and torch see them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

TIMEOUT_S = 20
QUERY = "--query-gpu=driver_version,name,memory.total"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device by the driver's account."""

    driver: str
    name: str
    memory_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchCuda:
    """What torch says."""

    count: int
    cuda: str | None
    """CUDA version torch was built for; None for a CPU build."""
    memory_bytes: float
    """Of the smallest device; 0 without any."""


def driver_gpus() -> list[Gpu]:
    """The driver's devices; empty without a driver.

    Raises:
        ValueError: nvidia-smi is there, but fails or hangs.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        answer = subprocess.run(
            [command, QUERY, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as problem:
        said = (getattr(problem, "stdout", None) or str(problem)).strip()
        raise ValueError(
            f"{command} fails: {said}; reload the NVIDIA driver (after an update: reboot)"
        ) from problem
    return [_gpu(line) for line in answer.stdout.splitlines() if line.count(",") >= 2]


def _gpu(line: str) -> Gpu:
    driver, name, mebibytes = (cell.strip() for cell in line.split(",", 2))
    memory = float(mebibytes) * 2**20 if mebibytes.replace(".", "").isdigit() else 0.0
    return Gpu(driver=driver, name=name, memory_bytes=memory)


def torch_cuda() -> TorchCuda:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(count)]
    return TorchCuda(
        count=count, cuda=torch.version.cuda, memory_bytes=float(min(sizes, default=0))
    )
