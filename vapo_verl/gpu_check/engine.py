"""Stage `engine`: visual attention of real vLLM engines, per token and layer; a model's pixels.

The 100M random model in bfloat16 runs in vLLM, and the same tokens go through transformers' eager
attention in float32. The error of an engine may be at most twice that of transformers in bfloat16.
Without CUDA the packaged model runs in float32, and only rounding errors are allowed.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor

from vapo_verl.data.compact_pixels import compact
from vapo_verl.digits.model import model_dir
from vapo_verl.gpu_check.case import CaseFailed, CaseSkipped, Check, require
from vapo_verl.gpu_check.parity import (
    ALL_LAYERS,
    PROCESSES,
    TOLERANCE,
    Batch,
    Eager,
    EngineRun,
    Engines,
    Sample,
    make_prompts,
)
from vapo_verl.gpu_check.results import Figure, significant

AT_ONCE = 3
"""Engines that run side by side on one GPU."""
START_S = 45.0
"""Approximate time that an engine takes to start; none is started with less time left."""
MEMORY_FRACTION = 0.08
"""Fraction of the GPU's memory for each engine."""
NO_VALUES: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineJob:
    """One engine and the batches that it gets, one after the other."""

    name: str
    batches: Mapping[str, Batch]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of `parity.ENGINE`."""
    env: Mapping[str, str] = field(default_factory=dict)
    capture: Mapping[str, Any] | None = None
    """Arguments that export visual attention; None for all layers."""
    lacks: str = ""
    """Why it cannot run here; empty if it can."""
    must_preempt: bool = False


def gpu_jobs(num_gpus: int) -> list[EngineJob]:
    """The engines of a CUDA machine, the most informative first."""
    prompts = make_prompts(1, 0, 2, 1, 3, 0, 2, 1, longest_side=16)
    mixed = Batch(prompts=prompts, sampling={"n": 2})
    greedy = Batch(prompts=prompts, sampling={"temperature": 0.0, "max_tokens": 64})
    graphs = {"TORCHDYNAMO_DISABLE": "0"}
    common = {
        "dtype": "bfloat16",
        "max_model_len": 2048,
        "max_num_batched_tokens": 2048,
        "gpu_memory_utilization": MEMORY_FRACTION,
    }
    captured = {**common, "enforce_eager": False}
    captured["compilation_config"] = {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32]}
    piecewise = {"cudagraph_mode": "PIECEWISE", "cudagraph_capture_sizes": [1, 8, 16, 32]}
    flash, triton, flashinfer = (
        {"attention_backend": name} for name in ("FLASH_ATTN", "TRITON_ATTN", "FLASHINFER")
    )
    return [
        EngineJob(
            name="FLASH_ATTN, CUDA graphs",
            settings={
                **captured,
                **flash,
                "enable_sleep_mode": True,
                # vLLM checks that the GPU's free memory grows, while other engines start beside it
                "kv_cache_memory_bytes": 4 * 2**30,
            },
            env=graphs,
            batches={
                "n=2, 0 to 3 images": mixed,
                "prefix cache": mixed,
                "after sleep level 1": Batch(prompts=prompts, sleep=1),
                "after sleep level 2": Batch(prompts=prompts, sleep=2),
                "greedy": greedy,
            },
        ),
        EngineJob(
            name="FLASH_ATTN, no graphs",
            settings={**common, **flash},
            batches={"n=2, 0 to 3 images": mixed, "greedy": greedy},
        ),
        EngineJob(
            name="FLASH_ATTN, piecewise graphs",
            settings={
                **captured,
                **flash,
                "compilation_config": piecewise,
                "max_num_batched_tokens": 256,
                "enable_prefix_caching": False,
            },
            env=graphs,
            batches={"chunked prefill": mixed},
        ),
        EngineJob(
            name="tensor parallel 2",
            settings={**common, **flash, "tensor_parallel_size": 2},
            env=PROCESSES,
            batches={"n=2, 0 to 3 images": mixed},
            lacks="" if num_gpus > 1 else "one GPU",
        ),
        EngineJob(
            name="TRITON_ATTN, CUDA graphs",
            settings={**captured, **triton},
            env=graphs,
            batches={"n=2, 0 to 3 images": mixed},
        ),
        EngineJob(
            name="FLASH_ATTN, no graphs, capture off",
            settings={**common, **flash},
            # first as with capture, so that the prefix cache holds the same
            batches={"n=2, 0 to 3 images": mixed, "greedy": greedy},
            capture=NO_VALUES,
        ),
        EngineJob(
            name="FLASH_ATTN, few blocks",
            settings={**common, **flash, "num_gpu_blocks_override": 140},
            batches={"preemption": Batch(prompts=prompts, sampling={"n": 2, "max_tokens": 96})},
            must_preempt=True,
        ),
        EngineJob(
            name="FLASHINFER, CUDA graphs",
            settings={**captured, **flashinfer},
            env=graphs,
            batches={"n=2, 0 to 3 images": mixed},
            lacks=lack_of_flashinfer(),
        ),
        EngineJob(
            name="TRITON_ATTN, no graphs",
            settings={**common, **triton},
            batches={"n=2, 0 to 3 images": mixed},
        ),
        EngineJob(
            name="FLASH_ATTN, CUDA graphs, capture off",
            settings={**captured, **flash, "enable_sleep_mode": True},
            env=graphs,
            # a first batch fills the prefix cache in the same way
            batches={"first": Batch(prompts=prompts), "greedy": greedy},
            capture=NO_VALUES,
        ),
    ]


def lack_of_flashinfer() -> str:
    """What FlashInfer lacks here; empty if it can run. It compiles the kernels that are missing."""
    if not importlib.util.find_spec("flashinfer"):
        return "flashinfer is not installed"
    missing = [name for name in ("nvcc", "ninja") if shutil.which(name) is None]
    if missing and not importlib.util.find_spec("flashinfer_jit_cache"):
        return f"flashinfer compiles its kernels, and {' and '.join(missing)} are not on PATH"
    return ""


def cpu_jobs() -> list[EngineJob]:
    """The rehearsal's engines."""
    prompts = make_prompts(1, 0, 2, 1)
    mixed = Batch(prompts=prompts, sampling={"n": 2})
    greedy = Batch(prompts=prompts, sampling={"temperature": 0.0})
    preempted = Batch(prompts=make_prompts(1, 2, 3, 1, 2), sampling={"n": 2, "max_tokens": 96})
    return [
        EngineJob(
            name="CPU_ATTN",
            batches={"n=2, 0 to 2 images": mixed, "prefix cache": mixed, "greedy": greedy},
        ),
        EngineJob(
            name="CPU_ATTN, capture off",
            batches={"first": mixed, "second": mixed, "greedy": greedy},
            capture=NO_VALUES,
        ),
        EngineJob(
            name="CPU_ATTN, few blocks",
            settings={"num_gpu_blocks_override": 56},
            batches={"preemption": preempted},
            must_preempt=True,
        ),
    ]


SAME_TOKENS = {
    "FLASH_ATTN, CUDA graphs": "FLASH_ATTN, CUDA graphs, capture off",
    "FLASH_ATTN, no graphs": "FLASH_ATTN, no graphs, capture off",
    "CPU_ATTN": "CPU_ATTN, capture off",
}
"""Engines whose greedy tokens must be equal, with capture on and off."""


def run(check: Check) -> None:
    on_gpu = check.device == "cuda"
    jobs = gpu_jobs(torch.cuda.device_count()) if on_gpu else cpu_jobs()
    judge = Judge(check) if on_gpu else ExactJudge()
    engines = Engines(check.scratch / "engines", check.random_model("100m") if on_gpu else None)
    check.case("pixels", partial(compare_pixels, check.device))
    with ThreadPoolExecutor(AT_ONCE if on_gpu else 1) as pool:
        runs = {job.name: pool.submit(_run, engines, job, check) for job in jobs}
        for job in jobs:
            for number, batch in enumerate(job.batches):
                if job.capture is None:
                    body = partial(_look, runs[job.name], number, job, judge)
                    check.case(f"{job.name}: {batch}", body)
            if other := SAME_TOKENS.get(job.name):
                name = f"{job.name}: tokens with capture on and off"
                check.case(name, partial(_same_tokens, runs[job.name], runs[other]))


def compare_pixels(device: str) -> Mapping[str, Figure]:
    """The floats that the device computes from uint8 pixels are the image processor's, to the bit.

    Raises:
        CaseFailed: some are not.
    """
    processor = AutoImageProcessor.from_pretrained(model_dir())
    images = list(make_prompts(3, longest_side=16)[0].images)
    wanted = processor(images=images, return_tensors="pt")["pixel_values"]
    compacted = compact(wanted, processor)
    if compacted is None:
        raise CaseFailed("the processor's pixels cannot be made compact")
    different = int((compacted.pixel_values(device).cpu() != wanted).sum())
    require(not different, f"{different} of {wanted.numel()} floats differ from the processor's")
    return {"floats": wanted.numel()}


def _run(engines: Engines, job: EngineJob, check: Check) -> EngineRun:
    if job.lacks:
        raise CaseSkipped(job.lacks)
    if check.seconds_left < START_S:
        raise CaseSkipped("no time left")
    return engines.run(
        *job.batches.values(),
        capture=ALL_LAYERS if job.capture is None else job.capture,
        env=job.env,
        timeout_s=check.seconds_left,
        **job.settings,
    )


def _look(
    run: Future[EngineRun], number: int, job: EngineJob, judge: Callable[..., Mapping[str, Figure]]
) -> Mapping[str, Figure]:
    result = run.result()
    figures: dict[str, Figure] = {}
    if job.must_preempt:
        require(result.preemptions > 0, "no request was preempted: the cache is too large")
        figures["preemptions"] = int(result.preemptions)
    samples = result.batches[number]
    cached = sum(sample.num_cached_tokens or 0 for sample in samples)
    return {**figures, **judge(samples), "tokens": _num_tokens(samples), "cached_tokens": cached}


def _same_tokens(on: Future[EngineRun], off: Future[EngineRun]) -> Mapping[str, Figure]:
    with_capture, without = on.result().batches[-1], off.result().batches[-1]
    for number, (one, other) in enumerate(zip(with_capture, without, strict=True)):
        same = one.completion.token_ids == other.completion.token_ids
        require(same, f"response {number} has other tokens with capture on than with it off")
    return {"tokens": _num_tokens(with_capture)}


def _num_tokens(samples: Sequence[Sample]) -> int:
    return sum(len(sample.completion.token_ids) for sample in samples)


class Judge:
    """Compares the error of a bfloat16 engine with the error that bfloat16 itself causes."""

    def __init__(self, check: Check) -> None:
        self._check = check

    @cached_property
    def _models(self) -> tuple[Eager, Eager]:
        folder, device = self._check.random_model("100m"), self._check.device
        return Eager(torch.float32, folder, device), Eager(torch.bfloat16, folder, device)

    def __call__(self, samples: Sequence[Sample]) -> Mapping[str, Figure]:
        exact, rounded = self._models
        values = [
            (x.values, exact.visual_attention(x), rounded.visual_attention(x)) for x in samples
        ]
        errors = np.concatenate([abs(got - exact).ravel() for got, exact, _ in values])
        own = np.concatenate([abs(other - exact).ravel() for _, exact, other in values])
        figures: dict[str, Figure] = {
            "mean_error": significant(errors.mean()),
            "largest_error": significant(errors.max()),
            "mean_error_of_bfloat16": significant(own.mean()),
            "largest_error_of_bfloat16": significant(own.max()),
        }
        shown = ", ".join(f"{name} {value}" for name, value in figures.items())
        # a comparison with nan is false
        holds = errors.mean() <= 2 * own.mean() and errors.max() <= 2 * own.max()
        require(bool(holds), f"more than twice as far from float32 as bfloat16: {shown}")
        return figures


class ExactJudge:
    """Compares a float32 engine with the packaged model in transformers."""

    @cached_property
    def _eager(self) -> Eager:
        return Eager()

    def __call__(self, samples: Sequence[Sample]) -> Mapping[str, Figure]:
        worst = self._eager.errors(samples).max()
        require(bool(worst <= TOLERANCE), f"off by {worst:.1e}, {TOLERANCE:.0e} is allowed")
        return {"largest_error": significant(worst)}
