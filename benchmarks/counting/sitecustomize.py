"""Counts what the processes of a run do with images, into the folder VAPO_COUNTS.

If its folder is on PYTHONPATH, Python imports this file at start, in every process of the run and
in any version of the project: see benchmarks/counted_run.py. Each process appends lines
`SECONDS ROLE KIND NUMBER` to its own file:

    processor   images processed by a Hugging Face image processor
    hash        hashes by vLLM's hasher of multimodal data
    encoder     images that vLLM's vision tower encodes
    sent        bytes of a message of TransferQueue, as encoded
    lag         milliseconds by which an event loop was late, every 50 ms

ROLE is the class of the Ray actor, `EngineCore` of vLLM, or `other`.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.abc
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = os.environ.get("VAPO_COUNTS")
LAG_INTERVAL_S = 0.05
SMALLEST_MESSAGE = 4096
"""Bytes; smaller messages are requests and replies without data."""


def role() -> str:
    title = Path("/proc/self/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    return title.rpartition("::")[2].split(".")[0] if "::" in title else "other"


def count(kind: str, number: float) -> None:
    line = f"{time.time():.3f} {role()} {kind} {number:.6g}\n"
    path = f"{FOLDER}/{os.getpid()}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def wrap(owner: Any, name: str, before: Callable[..., None]) -> None:
    """Call `before` with the arguments of each call of `owner.name`."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        before(*args, **kwargs)
        return function(*args, **kwargs)

    setattr(owner, name, counted)


def count_processor(module: Any) -> None:
    for name, cls in vars(module).items():
        if name.startswith("Qwen2VLImageProcessor") and "preprocess" in vars(cls):
            wrap(cls, "preprocess", lambda _, images, *a, **k: count("processor", _number(images)))


def _number(images: Any) -> int:
    return len(images) if isinstance(images, list | tuple) else 1


def count_hashes(module: Any) -> None:
    wrap(module.MultiModalHasher, "hash_kwargs", lambda **_: count("hash", 1))


def count_encoder(module: Any) -> None:
    tower = module.Qwen2_5_VisionTransformer
    wrap(tower, "forward", lambda _, x, grid_thw, *a, **k: count("encoder", len(grid_thw)))


def count_messages(module: Any) -> None:
    encode = module.encode

    def counted(message: Any) -> Any:
        frames = encode(message)
        if (num_bytes := sum(memoryview(frame).nbytes for frame in frames)) >= SMALLEST_MESSAGE:
            count("sent", num_bytes)
        return frames

    module.encode = counted


_loops: dict[Any, asyncio.Task[None]] = {}


def measure_lag(*_: Any, **__: Any) -> None:
    """Start a task that measures the lag of the running loop, once for each loop."""
    loop = asyncio.get_running_loop()
    if loop not in _loops:
        _loops[loop] = loop.create_task(_measure(loop))


async def _measure(loop: Any) -> None:
    while True:
        due = loop.time() + LAG_INTERVAL_S
        await asyncio.sleep(LAG_INTERVAL_S)
        count("lag", max(loop.time() - due, 0.0) * 1e3)


def lag_of_servers(module: Any) -> None:
    wrap_coroutine(module.vLLMHttpServer, "run_server")


def lag_of_workers(module: Any) -> None:
    wrap_coroutine(module.AgentLoopWorker, "_run_agent_loop")


def wrap_coroutine(cls: Any, name: str) -> None:
    function = getattr(cls, name)

    async def measured(*args: Any, **kwargs: Any) -> Any:
        measure_lag()
        return await function(*args, **kwargs)

    setattr(cls, name, functools.wraps(function)(measured))


HOOKS: dict[str, Callable[[Any], None]] = {
    "transformers.models.qwen2_vl.image_processing_qwen2_vl": count_processor,
    "vllm.multimodal.hasher": count_hashes,
    "vllm.model_executor.models.qwen2_5_vl": count_encoder,
    "transfer_queue.utils.zmq_utils": count_messages,
    "verl.workers.rollout.vllm_rollout.vllm_async_server": lag_of_servers,
    "verl.experimental.agent_loop.agent_loop": lag_of_workers,
}


class Hooked(importlib.abc.MetaPathFinder):
    """Finds the modules of `HOOKS` as Python does, and runs their hooks once they are loaded."""

    def __init__(self) -> None:
        self._left = dict(HOOKS)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        hook = self._left.pop(name, None)
        spec = None if hook is None else importlib.util.find_spec(name)
        if hook is None or spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_hook(module: Any) -> None:
            load(module)
            hook(module)

        spec.loader.exec_module = load_and_hook  # type: ignore[method-assign]
        return spec


if FOLDER:
    sys.meta_path.insert(0, Hooked())
