"""Stage `engine_speed`: what capture adds to a decode step of one vLLM engine.

The ways (`off`, `default` layers, `all` layers) take turns from step to step of the same responses,
so that they share context, batch and the state of the machine. CUDA graphs fix their kernels, so
each way has its own graphs, which are swapped with it. Shapes of Qwen2.5-VL-7B with 16 decoder
layers, dummy weights, prompts of one image of 1024 tokens.
"""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from PIL import Image

from vapo_verl.attention import engine_args
from vapo_verl.attention.settings import Settings
from vapo_verl.gpu_check.case import Check
from vapo_verl.gpu_check.results import Figure, significant

WAYS = ("off", "default", "all")
PROMPT = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is the sum?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes of a measurement."""

    batches: tuple[int, ...]
    image_tokens: int
    rounds: int
    """Steps of each way per batch."""

    @property
    def response_tokens(self) -> int:
        return (self.rounds + 2) * len(WAYS) + 16


def run(check: Check) -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the ways are switched in the worker itself
    on_gpu = check.device == "cuda"
    if on_gpu:
        plan = Plan(batches=(32, 128, 1), image_tokens=1024, rounds=40)
    else:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
        plan = Plan(batches=(2, 1), image_tokens=64, rounds=4)
    speed = EngineSpeed(check, plan)
    if not check.case("engine and graphs of each way", speed.start, needs_s=20):
        return
    for batch in plan.batches:
        name = f"batch {batch}, {plan.image_tokens} image tokens"
        check.case(name, partial(speed.measure, batch), needs_s=4)


class EngineSpeed:
    """One engine, and the batches that are timed in it."""

    def __init__(self, check: Check, plan: Plan) -> None:
        self._check, self._plan = check, plan

    def start(self) -> Mapping[str, Figure]:
        """Start the engine; call this first."""
        self._engine = start_engine(self._check, self._plan)
        self._switch = Switch(self._engine)
        layers = ", ".join(map(str, self._switch.default_layers))
        return {"layers": self._switch.num_layers, "default_layers": layers}

    def measure(self, batch: int) -> Mapping[str, Figure]:
        """Decode steps of `batch` responses, the ways in turn."""
        from vllm import SamplingParams

        plan = self._plan
        side = 28 * int(plan.image_tokens**0.5)
        pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
        prompt = {"prompt": PROMPT, "multi_modal_data": {"image": [Image.fromarray(pixels)]}}
        sampling = SamplingParams(max_tokens=plan.response_tokens, ignore_eos=True)
        for _ in range(batch):
            self._engine.enqueue([prompt], sampling, use_tqdm=False)
        rounds = list(_timed_rounds(self._engine.llm_engine, self._switch, plan, batch))
        figures: dict[str, Figure] = {
            "rounds": len(rounds),
            "off_ms": significant(1e3 * median(r["off"] for r in rounds), 3),
        }
        for way in WAYS[1:]:
            low, middle, high = quantiles([100 * (r[way] / r["off"] - 1) for r in rounds], n=4)
            figures[f"{way}_adds_percent"] = significant(middle)
            figures[f"{way}_quartiles"] = f"{low:.2g} .. {high:.2g}"
        return figures


def start_engine(check: Check, plan: Plan) -> Any:
    from vllm import LLM

    on_gpu = check.device == "cuda"
    model = check.random_model("7b", 16, 4) if on_gpu else check.random_model("100m", 4, 1)
    largest = max(plan.batches)
    graphs = {"compilation_config": {"cudagraph_capture_sizes": sorted(plan.batches)}}
    return LLM(
        str(model),
        dtype="bfloat16" if on_gpu else "float32",
        load_format="dummy",
        max_model_len=plan.image_tokens + plan.response_tokens + 64,
        max_num_seqs=largest,
        max_num_batched_tokens=8192 if on_gpu else 1024,
        kv_cache_memory_bytes=8 * 2**30 if on_gpu else 2**28,
        enforce_eager=not on_gpu,
        enable_prefix_caching=False,  # prompts are equal, but must not share their keys
        async_scheduling=False,  # a step that is timed is the step that was switched
        limit_mm_per_prompt={"image": 1, "video": 0},
        skip_mm_profiling=True,
        disable_log_stats=True,
        **(graphs if on_gpu else {}),
        **engine_args("all"),
    )


class Switch:
    """Chooses the layers of a running engine that record, and the CUDA graphs that go with them."""

    def __init__(self, engine: Any) -> None:
        executor = engine.llm_engine.engine_core.engine_core.model_executor
        worker = executor.driver_worker.worker
        self._capture = worker._capture
        context = worker.vllm_config.compilation_config.static_forward_context
        self._impls = [m.impl for m in context.values() if hasattr(m.impl, "record")]
        self.num_layers = len(self._impls)
        self.default_layers = Settings().select(range(self.num_layers))
        self._graphs: dict[str, list[tuple[Any, dict[Any, Any]]]] = {}
        if not worker.vllm_config.model_config.enforce_eager:
            for way in WAYS:
                self._graphs[way] = self._captured(way, worker.model_runner)

    def _captured(self, way: str, runner: Any) -> list[tuple[Any, dict[Any, Any]]]:
        """Capture the engine's graphs again; returns each wrapper with its graphs for this way."""
        from vllm.compilation.cuda_graph import CUDAGraphWrapper

        self._record(way)
        wrappers = list(CUDAGraphWrapper._all_instances)
        for wrapper in wrappers:
            wrapper.concrete_cudagraph_entries = {}
        runner.capture_model()
        return [(wrapper, wrapper.concrete_cudagraph_entries) for wrapper in wrappers]

    def set(self, way: str) -> None:
        """Let the next steps run this way."""
        self._record(way)
        for wrapper, entries in self._graphs.get(way, ()):
            wrapper.concrete_cudagraph_entries = entries

    def _record(self, way: str) -> None:
        layers = {"off": [], "default": self.default_layers}.get(way, range(self.num_layers))
        for index, impl in enumerate(self._impls):
            impl.capture = self._capture if index in layers else None


def _timed_rounds(
    engine: Any, switch: Switch, plan: Plan, batch: int
) -> Iterator[dict[str, float]]:
    """Seconds of one step each way while all responses decode; the order rotates."""
    switch.set("off")
    running = engine.engine_core.engine_core.scheduler.running
    while len(running) < batch:
        engine.step()
    engine.step()  # the last prefill has been sampled
    for number in range(plan.rounds):
        seconds = {}
        for offset in range(len(WAYS)):
            way = WAYS[(number + offset) % len(WAYS)]
            switch.set(way)
            _synchronize()
            start = time.perf_counter()
            engine.step()
            _synchronize()
            seconds[way] = time.perf_counter() - start
        yield seconds
    while engine.has_unfinished_requests():
        engine.step()


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
