"""Cost of capturing visual attention, per decode step of a real vLLM engine.

    python benchmarks/attention.py [--batch 8] [--images 3] [--image-tokens 64] [--tokens 96]
    python benchmarks/attention.py --size 7b --dtype bfloat16 --cuda-graphs --batch 128 --images 1 \
        --image-tokens 1024 --kv-cache-gib 8 --out attention.json

One engine runs in this process. The ways take turns from step to step of the same responses, so
that they share context, batch and load of the machine. Ways:

    off       no layer captured
    default   the default layers, one in 8
    all       every layer
    naive     every layer, by softmax(QK) over the full gathered context after vLLM's attention;
              not with --cuda-graphs, which cannot capture it

and transformers' eager generation from the same prompts, with and without `output_attentions`.
Models are random ones of `vapo_verl.digits.model.random_models`, or --model.
Prints a table of medians and one JSON line. Ratios are to `off` of the same round; times are
seconds per step.
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

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor, Qwen2_5_VLForConditionalGeneration

from vapo_verl.attention import engine_args
from vapo_verl.digits.model.random_models import SHAPES, image_size, make_random_model
from vapo_verl.gpu_check import engine_speed

QUESTION = "What is the sum of the top row?"
TEXT_TOKENS = 128
"""Tokens reserved for a prompt's text."""
MAX_BATCHED_TOKENS = 8192


def main() -> None:
    options = parse()
    if not options.cuda_graphs:
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or random_model(Path(folder), options)
        prompts = make_prompts(model, options)
        rounds = vllm_rounds(model, prompts, options)
        eager = transformers_times(model, prompts, options)
    report(rounds, eager, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--batch", type=int, default=8, help="responses at a time (%(default)s)")
    add("--images", type=int, default=3, help="per prompt (%(default)s)")
    add("--image-tokens", type=int, default=64, help="per image, of 28 x 28 pixels (%(default)s)")
    add("--tokens", type=int, default=96, help="per response (%(default)s)")
    add("--repeats", type=int, default=4, help="times that the responses are made (%(default)s)")
    add("--block-size", type=int, default=32)
    add("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    add("--cuda-graphs", action="store_true", help="compile the model and replay its steps")
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument("--kv-cache-gib", type=float, default=1.0, help="(%(default)s)")
    memory.add_argument(
        "--gpu-memory", type=float, help="fraction of the GPU for weights and KV cache, instead"
    )
    add("--transformers-tokens", type=int, default=16, help="0 leaves transformers out")
    add("--size", default="100m", choices=list(SHAPES), help="of the random model (%(default)s)")
    add("--layers", type=int, help="decoder layers of the random model")
    add("--model", help="a checkpoint folder instead")
    add("--out", type=Path, help="file for the results as JSON")
    return parser.parse_args()


def random_model(folder: Path, options: argparse.Namespace) -> str:
    make_random_model(
        folder,
        options.size,
        layers=options.layers,
        max_image_tokens=max(1024, options.image_tokens),
        dtype=getattr(torch, options.dtype),
    )
    return str(folder)


def has_weights(model: str) -> bool:
    return not Path(model).is_dir() or any(Path(model).glob("*.safetensors"))


def make_prompts(model: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    width, height = image_size(options.image_tokens)
    content = [{"type": "image"}] * options.images + [{"type": "text", "text": QUESTION}]
    text = AutoProcessor.from_pretrained(model).apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return [
        {
            "prompt": text,
            "multi_modal_data": {
                "image": [
                    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
                    for _ in range(options.images)
                ]
            },
        }
        for _ in range(options.batch)
    ]


class Switch(engine_speed.Switch):
    """Chooses which layers of a running engine record, and how."""

    def set(self, way: str) -> None:
        super().set("all" if way == "naive" else way)
        for impl in self._impls:
            impl.__dict__.pop("record", None)
            if way == "naive":
                impl.record = partial(naive_record, impl)


def naive_record(impl: Any, capture: Any, query: Any, kv_cache: Any, batch: Any) -> None:
    """The same ratio, by gathering and multiplying all keys of every row in PyTorch."""
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

    prompt_tokens = options.images * options.image_tokens + TEXT_TOKENS
    if options.gpu_memory:
        memory = {"gpu_memory_utilization": options.gpu_memory}
    else:
        memory = {"kv_cache_memory_bytes": int(options.kv_cache_gib * 2**30)}
    graphs = {"compilation_config": {"cudagraph_capture_sizes": [options.batch]}}
    engine = LLM(
        model,
        load_format="auto" if has_weights(model) else "dummy",
        dtype=options.dtype,
        max_model_len=prompt_tokens + options.tokens,
        max_num_seqs=options.batch,
        max_num_batched_tokens=max(
            prompt_tokens, min(options.batch * prompt_tokens, MAX_BATCHED_TOKENS)
        ),
        block_size=options.block_size,
        enforce_eager=not options.cuda_graphs,
        enable_prefix_caching=False,
        async_scheduling=False,  # so that the timed step is the one that was switched
        limit_mm_per_prompt={"image": options.images, "video": 0},
        skip_mm_profiling=True,
        **memory,
        **(graphs if options.cuda_graphs else {}),
        **engine_args("all"),
    )
    switch = Switch(engine)
    ways = engine_speed.WAYS if options.cuda_graphs else (*engine_speed.WAYS, "naive")
    sampling = SamplingParams(max_tokens=options.tokens, temperature=1.0, ignore_eos=True)
    rounds: list[dict[str, float]] = []
    for repeat in range(options.repeats + 1):
        for prompt in prompts:
            engine.enqueue([prompt], sampling, use_tqdm=False)
        steps = list(timed_steps(engine.llm_engine, switch, ways, options.batch, first_way=repeat))
        rounds += steps if repeat else []  # the first is warm-up
    if not rounds:
        raise SystemExit(
            f"--tokens {options.tokens}: no round of {len(ways)} steps was left after the prefill "
            "of all prompts; set more"
        )
    return rounds


def timed_steps(
    engine: Any, switch: Switch, ways: tuple[str, ...], batch: int, first_way: int
) -> Iterator[dict[str, float]]:
    """Rounds of one step each way while all responses decode; the order rotates."""
    switch.set("off")
    scheduler = engine.engine_core.engine_core.scheduler

    def decoding() -> int:
        return sum(x.num_computed_tokens >= x.num_prompt_tokens for x in scheduler.running)

    while decoding() < batch:
        engine.step()
        if not engine.has_unfinished_requests():
            return
    for number in range(10**6):
        seconds = {}
        for i in range(len(ways)):
            way = ways[(first_way + number + i) % len(ways)]
            switch.set(way)
            synchronize()
            start = time.perf_counter()
            engine.step()
            synchronize()
            seconds[way] = time.perf_counter() - start
        if decoding() < batch:  # some responses ended within the round
            break
        yield seconds
    while engine.has_unfinished_requests():
        engine.step()


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
    kind = {"dtype": getattr(torch, options.dtype), "attn_implementation": "eager"}
    if has_weights(model):
        network = Qwen2_5_VLForConditionalGeneration.from_pretrained(model, **kind)
    else:
        with torch.device(device):
            config = AutoConfig.from_pretrained(model)
            network = Qwen2_5_VLForConditionalGeneration._from_config(config, **kind)
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
    ratios = {way: [r[way] / r["off"] for r in rounds] for way in rounds[0] if way != "off"}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{device}, batch {options.batch}, {options.images} images of {options.image_tokens} tokens"
        f", {options.dtype}, {torch.get_num_threads()} threads, {len(rounds)} rounds; "
        f"off: {1e3 * off:.2f} ms a step"
    )
    print(f"{'way':38} {'ratio to off':>12}   quartiles")
    for way, values in ratios.items():
        low, middle, high = quantiles(values, n=4) if len(values) > 1 else values * 3
        print(f"{way:38} {middle:12.3f}   {low:.3f} .. {high:.3f}")
    for way, seconds in eager.items():
        print(f"{way:38} {seconds / off:12.3f}")
    medians = {way: median(values) for way, values in ratios.items()}
    others = {way: seconds / off for way, seconds in eager.items()}
    settings = {k: v for k, v in vars(options).items() if k not in ("model", "out")}
    results = {**settings, "device": device, "rounds": len(rounds), "off_s": off}
    line = json.dumps({**results, "ratio": {**medians, **others}})
    print(line)
    if options.out:
        options.out.write_text(line + "\n")


if __name__ == "__main__":
    main()
