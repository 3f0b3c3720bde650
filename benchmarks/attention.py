"""What the capture of visual attention costs a decode step of a real vLLM engine.

    python benchmarks/attention.py [--batch 8] [--images 3] [--tokens 96] [--model PATH]

One engine in this process; the ways take turns from step to step of the same responses, so that
context, batch and the machine's mood are shared. Ways:

    off       no layer captured
    subset    the default layers, one in 8
    all       every layer
    naive     every layer, by softmax(QK) over the whole gathered context after vLLM's own attention

and transformers' eager generation of as many tokens from the same prompts, with and without
`output_attentions`. Without --model: a random Qwen2.5-VL of 74 million parameters. Prints a table
of medians and one JSON line. Ratios are to `off` of the same round; times are seconds per step.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the ways are switched in the worker itself
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from vapo_verl.attention import engine_args
from vapo_verl.attention.settings import Settings
from vapo_verl.small_model import model_dir

WAYS = ("off", "subset", "all", "naive")
SIDE = 224
"""Pixels of an image: 64 tokens."""
QUESTION = "What is the sum of the top row?"


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or random_model(Path(folder))
        prompts = make_prompts(model, options)
        rounds = vllm_rounds(model, prompts, options)
        eager = transformers_times(model, prompts, options)
    report(rounds, eager, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=3, help="of 64 tokens each, per prompt")
    parser.add_argument("--tokens", type=int, default=96, help="per response")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--transformers-tokens", type=int, default=16, help="0 leaves them out")
    parser.add_argument("--model", help="a checkpoint folder")
    return parser.parse_args()


def random_model(folder: Path) -> str:
    """74 million parameters in 12 layers of 12 heads and 4 KV heads of 64."""
    from vapo_verl.small_model.architecture import build_processor, model_config

    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    config = model_config(tokenizer)
    config.text_config.update(
        {
            "hidden_size": 768,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "rope_parameters": {**config.text_config.rope_parameters, "mrope_section": [8, 12, 12]},
            "layer_types": ["full_attention"] * 12,
            "initializer_range": 0.05,
        }
    )
    config.vision_config.out_hidden_size = 768
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)
    return str(folder)


def make_prompts(model: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    content = [{"type": "image"}] * options.images + [{"type": "text", "text": QUESTION}]
    text = AutoProcessor.from_pretrained(model).apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return [
        {
            "prompt": text,
            "multi_modal_data": {
                "image": [
                    Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))
                    for _ in range(options.images)
                ]
            },
        }
        for _ in range(options.batch)
    ]


class Switch:
    """Chooses which layers of a running engine record, and how."""

    def __init__(self, engine: Any) -> None:
        executor = engine.llm_engine.engine_core.engine_core.model_executor
        worker = executor.driver_worker.worker
        self._capture = worker._capture
        context = worker.vllm_config.compilation_config.static_forward_context
        self._impls = [m.impl for m in context.values() if hasattr(m.impl, "record")]
        self.num_layers = len(self._impls)
        self.subset = Settings().select(range(self.num_layers))

    def set(self, way: str) -> None:
        layers = {"off": [], "subset": self.subset}.get(way, range(self.num_layers))
        for index, impl in enumerate(self._impls):
            impl.capture = self._capture if index in layers else None
            impl.__dict__.pop("record", None)
            if way == "naive":
                impl.record = partial(naive_record, impl)


def naive_record(impl: Any, capture: Any, query: Any, kv_cache: Any, batch: Any) -> None:
    """The same value by gathering and multiplying all keys of every row in PyTorch."""
    rows = batch.seq_lens.shape[0]
    if kv_cache.device.type == "cpu":
        from vapo_verl.attention.kernels.cpu import KeyLayout, visual_ratio_torch

        ratio = visual_ratio_torch(
            query,
            kv_cache,
            KeyLayout.of(kv_cache.dtype, impl.isa),
            batch.query_start_loc,
            batch.seq_lens,
            batch.block_table,
            capture.spans[:rows],
            impl.scale,
        )
    else:
        from vapo_verl.attention import reference

        context = int(batch.seq_lens.max())
        last = (batch.query_start_loc[1:] - 1).long()
        ratio = reference.visual_ratio(
            query[last],
            reference.gather_keys(kv_cache[:, 0], batch.block_table, context),
            reference.visual_mask(capture.spans[:rows], context),
            batch.seq_lens,
            impl.scale,
        )
    capture.ratio[impl.slot, :rows] = ratio


def vllm_rounds(
    model: str, prompts: list[dict[str, Any]], options: argparse.Namespace
) -> list[dict[str, float]]:
    """Seconds of one decode step each way, round by round."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        model,
        dtype=options.dtype,
        max_model_len=64 * options.images + 128 + options.tokens,
        max_num_seqs=options.batch,
        max_num_batched_tokens=options.batch * (64 * options.images + 128),
        kv_cache_memory_bytes=2**30,
        block_size=options.block_size,
        enforce_eager=True,
        enable_prefix_caching=False,
        limit_mm_per_prompt={"image": options.images, "video": 0},
        skip_mm_profiling=True,
        **engine_args("all"),
    )
    switch = Switch(engine)
    sampling = SamplingParams(max_tokens=options.tokens, temperature=1.0, ignore_eos=True)
    rounds = []
    for repeat in range(options.repeats + 1):
        for prompt in prompts:
            engine.enqueue([prompt], sampling, use_tqdm=False)
        steps = timed_steps(engine.llm_engine, switch, first_way=repeat)
        if repeat:  # the first is warm-up
            rounds += list(steps)
        else:
            list(steps)
    return rounds


def timed_steps(engine: Any, switch: Switch, first_way: int) -> Iterator[dict[str, float]]:
    """Rounds of one step each way while all responses decode; the order rotates."""
    switch.set("off")
    running = engine.engine_core.engine_core.scheduler
    while len(running.running) < engine.vllm_config.scheduler_config.max_num_seqs:
        engine.step()
    engine.step()  # the last prefill has been sampled
    for number in range(10**6):
        seconds = {}
        for i in range(len(WAYS)):
            way = WAYS[(first_way + number + i) % len(WAYS)]
            switch.set(way)
            start = time.perf_counter()
            engine.step()
            synchronize()
            seconds[way] = time.perf_counter() - start
            if not engine.has_unfinished_requests():
                return
        yield seconds


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def transformers_times(
    model: str, prompts: list[dict[str, Any]], options: argparse.Namespace
) -> dict[str, float]:
    """Seconds of one decode step of eager generation, with and without its attention maps."""
    tokens = options.transformers_tokens
    if not tokens:
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        model, dtype=getattr(torch, options.dtype), attn_implementation="eager"
    )
    network = network.eval().to(device)
    network.generation_config.eos_token_id = None
    inputs = AutoProcessor.from_pretrained(model)(
        text=[prompt["prompt"] for prompt in prompts],
        images=[prompt["multi_modal_data"]["image"] for prompt in prompts],
        padding=True,
        return_tensors="pt",
    ).to(device)

    def seconds(number: int, **arguments: Any) -> float:
        start = time.perf_counter()
        network.generate(
            **inputs,
            max_new_tokens=number,
            min_new_tokens=number,
            do_sample=False,
            return_dict_in_generate=True,
            **arguments,
        )
        synchronize()
        return time.perf_counter() - start

    def per_step(**arguments: Any) -> float:
        return (seconds(tokens + 1, **arguments) - seconds(1, **arguments)) / tokens

    ways: dict[str, Callable[[], float]] = {
        "transformers": per_step,
        "transformers with output_attentions": partial(per_step, output_attentions=True),
    }
    seconds(1)
    samples = [{name: way() for name, way in ways.items()} for _ in range(3)]
    return {name: median(sample[name] for sample in samples) for name in ways}


def report(
    rounds: list[dict[str, float]], eager: dict[str, float], options: argparse.Namespace
) -> None:
    off = median(r["off"] for r in rounds)
    ratios = {way: [r[way] / r["off"] for r in rounds] for way in WAYS[1:]}
    print(
        f"batch {options.batch}, {64 * options.images} image tokens, {options.dtype}, "
        f"{torch.get_num_threads()} threads, {len(rounds)} rounds; off: {1e3 * off:.2f} ms a step"
    )
    print(f"{'way':38} {'ratio to off':>12}   quartiles")
    for way, values in ratios.items():
        low, middle, high = quantiles(values, n=4)
        print(f"{way:38} {middle:12.3f}   {low:.3f} .. {high:.3f}")
    for way, seconds in eager.items():
        print(f"{way:38} {seconds / off:12.3f}")
    medians = {way: median(values) for way, values in ratios.items()}
    others = {way: seconds / off for way, seconds in eager.items()}
    settings = {k: v for k, v in vars(options).items() if k != "model"}
    print(json.dumps({**settings, "off_s": off, "ratio": {**medians, **others}}))


if __name__ == "__main__":
    main()
