"""Cost of a rollout's requests and images, against veRL's own path: work, bytes and event loops.

    python benchmarks/rollout_scale.py [--quick] [--baseline CHECKOUT]
        [--out benchmarks/results/rollout_scale.json]

Part 1, the server's front end: CPU time from a request to the bytes for the engine core, for the
first response of a prompt, a sibling and a probe, at several image sizes. `verl` sends the images
with every request, `ours` sends the prompt's key. Both run in one process and take turns.
Part 2, the server's other end: CPU time of a decoded token, from the engine core's output to the
log probability that veRL reads, with text (`verl`) and without (`ours`). Both take turns.
Part 3, an agent-loop worker: runs of the image processor for a prompt with n responses.
Part 4, the replay buffer: bytes of a response as TransferQueue encodes them, bytes that each of the
three phases fetches, and their totals for 8 and 64 GPUs. veRL gives a rank the responses that
balance its tokens, so that siblings are on many ranks: each of these fetches the prompt's pixels.

Part 5, with `--baseline`: real runs of another checkout, such as the last release, and of this one.
Images, hashes and encoder runs are counted; bytes, memory and lag of event loops are measured. See
benchmarks/counted_run.py.

No engine runs in parts 1 to 4. Prints tables; `--out` writes JSON. With `--check FILE` it compares
counts and bytes with those of FILE and exits with 1 if one grew by more than 5 %; seconds are never
compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"  # no model runs, so the packaged one may be short

import numpy as np
import torch
from PIL import Image
from transfer_queue.utils.serial_utils import calc_packed_size, encode
from transformers import AutoProcessor
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.workers.rollout.utils import qwen2_5_vl_dedup_image_tokens
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.renderers.registry import renderer_from_config
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.outputs import LogprobsLists
from vllm.v1.serial_utils import MsgpackEncoder

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import counted_run
from vapo_verl.digits.model import model_dir
from vapo_verl.rollout.engine_inputs import EngineInputs, PromptImages
from vapo_verl.rollout.prompts import PIXELS_OF, model_inputs_of, without_images
from vapo_verl.rollout.server import without_text
from vapo_verl.rollout.transfer import NOT_FOR_MODELS

SIDES = {340: (476, 560), 1008: (784, 1008), 2500: (1400, 1400), 3869: (2044, 1484)}
"""Image tokens -> width and height in pixels; a token is 28 x 28."""
RESPONSE_TOKENS = 500
GROUP = 5
NUM_ANCHORS = 20
PROMPTS_PER_STEP = 384
PHASES = ("old_log_prob", "ref_log_prob", "update_actor")
QUESTION = "What is the area of the shaded triangle? Think first."
NUM_DECODING = 128
"""Responses that a server decodes at once."""
ANSWER = SamplingParams(max_tokens=64, logprobs=0, temperature=1.0, seed=1)
PROBE = SamplingParams(max_tokens=1, logprobs=0, detokenize=False, temperature=1.0, seed=1)
ROLLOUT = {"max_tokens": RESPONSE_TOKENS, "logprobs": 0, "temperature": 1.0}
LIMITS = {"min_pixels": 784, "max_pixels": 4096 * 28 * 28}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 1 if a count or a size grew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two image sizes, few rounds")
    parser.add_argument("--baseline", type=Path, help="another checkout, for part 5")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--check", type=Path, help="JSON file whose counts and bytes are the limit")
    args = parser.parse_args(argv)
    sizes = [340, 1008] if args.quick else list(SIDES)
    processor = AutoProcessor.from_pretrained(model_dir(), **LIMITS)
    front_end = asyncio.run(measure_front_end(processor, sizes, rounds=3 if args.quick else 9))
    decoding = measure_decoding(processor.tokenizer, rounds=3 if args.quick else 9)
    runs = processor_runs(processor)
    buffer = {tokens: buffer_bytes(processor, tokens) for tokens in sizes}
    result = {
        "command": "python benchmarks/rollout_scale.py" + (" --quick" if args.quick else ""),
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "front_end_ms": front_end,
        "decoded_token_us": decoding,
        "counts": runs,
        "bytes": buffer,
        "model": {gpus: step_model(front_end, buffer, gpus) for gpus in (8, 64)},
    }
    show(result)
    if args.baseline:
        result["runs"] = counted_run.measure(args.baseline, steps=2, pixels=1_000_000)
        counted_run.show(result["runs"])
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    if not args.check:
        return 0
    now, then = (
        {part: each[part] for part in ("counts", "bytes")}
        for each in (result, json.loads(args.check.read_text()))
    )
    return counted_run.report_growth(now, then)


def picture(tokens: int, seed: int = 0) -> Image.Image:
    width, height = SIDES[tokens]
    values = np.random.default_rng([tokens, seed]).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    return Image.fromarray(values)


def prompt_of(processor: Any, image: Image.Image) -> tuple[list[int], Mapping[str, Any]]:
    """Token ids of the prompt, and the processor's other outputs."""
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs = dict(processor(text=[text], images=[image], return_tensors="pt"))
    return inputs.pop("input_ids")[0].tolist(), inputs


class FrontEnd:
    """vLLM's way from a request to the bytes for the engine core, for one prompt."""

    def __init__(
        self, processor: Any, renderer: Any, front: InputProcessor, tokens: int, seed: int = 0
    ) -> None:
        self.processor, self.renderer, self.front = processor, renderer, front
        self.image = picture(tokens, seed)
        self.ids, _ = prompt_of(processor, self.image)
        self.inputs = EngineInputs(renderer)
        self.to_core = MsgpackEncoder()

    async def open(self) -> None:
        """Process the prompt; ``PromptImages(key="p")`` stands for its image."""
        collapsed = qwen2_5_vl_dedup_image_tokens(self.ids, self.processor)
        await self.inputs.open("p", collapsed, [self.image], {})

    async def add(self, prompt: Any, sampling: SamplingParams) -> None:
        """``AsyncLLM.add_request`` up to its socket."""
        request = self.front.process_inputs("id", prompt, sampling, supported_tasks=("generate",))
        self.front.assign_request_id(request)
        self.to_core.encode(request)

    async def request(self, images: Any, rest: list[int], sampling: SamplingParams) -> None:
        """Send a request as veRL's server does."""
        tokens = qwen2_5_vl_dedup_image_tokens([*self.ids, *rest], self.processor)
        prompt = {"prompt_token_ids": tokens, "multi_modal_data": {"image": images}}
        await self.inputs.send(prompt, lambda processed: self.add(processed, sampling))

    async def measure(self, way: str) -> dict[str, float]:
        """CPU milliseconds of a first response, a sibling and a probe, with cold caches."""
        self.renderer.clear_mm_cache()
        images = PromptImages(key="p") if way == "ours" else [self.image]
        calls = {
            "first": (images, [], ANSWER),
            "sibling": (images, [], ANSWER),
            "probe": (images, [100] * RESPONSE_TOKENS, PROBE),
        }
        found = {}
        for name, call in calls.items():
            started_s = time.process_time()
            if way == "ours" and name == "first":
                await self.open()
            await self.request(*call)
            found[name if way == "ours" else f"verl_{name}"] = time.process_time() - started_s
        self.inputs.close("p")
        return {name: seconds * 1e3 for name, seconds in found.items()}


def front_end_of_vllm() -> tuple[Any, InputProcessor]:
    """Renderer and input processor, without an engine."""
    engine = AsyncEngineArgs(
        model=str(model_dir()),
        max_model_len=8192,
        mm_processor_kwargs=LIMITS,
        limit_mm_per_prompt={"image": 1, "video": 0},
        enable_prefix_caching=True,
        skip_mm_profiling=True,
    ).create_engine_config()
    renderer = renderer_from_config(engine)
    return renderer, InputProcessor(engine, renderer)


async def measure_front_end(
    processor: Any, sizes: Sequence[int], rounds: int
) -> dict[int, dict[str, float]]:
    """CPU milliseconds per request by image tokens: medians over rounds."""
    renderer, front = front_end_of_vllm()
    results = {}
    for tokens in sizes:
        prompt = FrontEnd(processor, renderer, front, tokens)
        times: dict[str, list[float]] = {}
        for _ in range(rounds):
            for way in ("verl", "ours"):
                for name, ms in (await prompt.measure(way)).items():
                    times.setdefault(name, []).append(ms)
        results[tokens] = {name: round(median(values), 3) for name, values in times.items()}
    return results


def measure_decoding(tokenizer: Any, rounds: int) -> dict[str, float]:
    """CPU microseconds of a decoded token in vLLM's front end: medians over rounds."""
    ways = {"verl": ROLLOUT, "ours": without_text(ROLLOUT)}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, sampling in ways.items():
            times[way].append(decoding_us(tokenizer, sampling))
    return {way: round(median(values), 2) for way, values in times.items()}


def decoding_us(tokenizer: Any, sampling: Mapping[str, Any]) -> float:
    """Of one batch of responses that begin and end together."""
    processor = OutputProcessor(tokenizer=tokenizer, log_stats=False)
    ids = np.random.default_rng(0).integers(20, 60, (RESPONSE_TOKENS, NUM_DECODING)).tolist()
    for name in range(NUM_DECODING):
        processor.add_request(decoding_request(str(name), sampling), prompt=None)
    spent_s = 0.0
    for step, tokens in enumerate(ids):
        outputs = [decoded(str(name), token, step) for name, token in enumerate(tokens)]
        started_s = time.process_time()
        found = processor.process_outputs(outputs).request_outputs
        spent_s += time.process_time() - started_s
    started_s = time.process_time()
    for output in (each.outputs[0] for each in found):  # as veRL's server reads them
        _ = [at[token].logprob for token, at in zip(output.token_ids, output.logprobs, strict=True)]
    spent_s += time.process_time() - started_s
    return 1e6 * spent_s / (RESPONSE_TOKENS * NUM_DECODING)


def decoding_request(name: str, sampling: Mapping[str, Any]) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id=name,
        external_req_id=name,
        prompt_token_ids=[1, 2, 3],
        mm_features=None,
        sampling_params=SamplingParams(**sampling),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


def decoded(name: str, token: int, step: int) -> EngineCoreOutput:
    """What the engine core says of a response in a step."""
    logprobs = LogprobsLists(np.array([[token]]), np.array([[-0.5]]), np.array([1]))
    ends = FinishReason.LENGTH if step == RESPONSE_TOKENS - 1 else None
    return EngineCoreOutput(
        request_id=name, new_token_ids=[token], new_logprobs=logprobs, finish_reason=ends
    )


def processor_runs(processor: Any) -> dict[str, int]:
    """Runs of the image processor in an agent-loop worker and a server for a prompt's responses."""
    image = picture(340)
    runs = 0
    preprocess = type(processor.image_processor).preprocess

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal runs
        runs += 1
        return preprocess(self, *args, **kwargs)

    with patch.object(type(processor.image_processor), "preprocess", counted):
        for _ in range(GROUP):
            ids, _ = prompt_of(processor, image)
            verls_inputs(processor, image, ids)
        verl_runs, runs = runs, 0
        ids, inputs = prompt_of(processor, image)
        model_inputs_of(inputs, processor)
        return {"processor_runs_verl": verl_runs, "processor_runs": runs}


def verls_inputs(processor: Any, image: Image.Image, ids: list[int]) -> dict[str, Any]:
    """veRL's ``multi_modal_inputs`` of a response."""
    worker = SimpleNamespace(
        processor=processor, tokenizer=processor.tokenizer, _get_mm_processor_kwargs=lambda _: {}
    )
    output = SimpleNamespace(multi_modal_data={"images": [image]}, mm_processor_kwargs=None)
    inputs = AgentLoopWorker._compute_multi_modal_inputs(worker, output, torch.tensor(ids))
    inputs.pop("mm_token_type_ids", None)
    return inputs


def buffer_bytes(processor: Any, tokens: int) -> dict[str, int]:
    """Bytes of a response in the replay buffer, and bytes that a phase fetches for it.

    ``verl_*``: veRL's row, with the decoded image in the messages and float32 pixels. ``*_alone``
    and ``*_in_group``: ours, with all or a fifth of the prompt's row.
    """
    image = picture(tokens)
    ids, processed = prompt_of(processor, image)
    response = [100] * RESPONSE_TOKENS
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}],
        }
    ]
    length = len(ids) + RESPONSE_TOKENS
    shared = {
        "prompts": torch.tensor(ids),
        "responses": torch.tensor(response),
        "response_mask": torch.ones(RESPONSE_TOKENS, dtype=torch.int64),
        "loss_mask": torch.ones(RESPONSE_TOKENS, dtype=torch.int64),
        "input_ids": torch.tensor([*ids, *response]),
        "position_ids": torch.zeros(4, length, dtype=torch.int64),
        "rm_scores": torch.zeros(RESPONSE_TOKENS),
        "rollout_log_probs": torch.zeros(RESPONSE_TOKENS),
    }
    verl = {
        **shared,
        "raw_prompt": messages,
        "multi_modal_inputs": verls_inputs(processor, image, [*ids, *response]),
    }
    inputs = model_inputs_of(processed, processor)
    assert inputs is not None and inputs.pixels is not None
    inputs.plain.pop("mm_token_type_ids", None)
    ours = {
        **shared,
        "raw_prompt": without_images(messages),
        "visual_attention": torch.zeros(RESPONSE_TOKENS),
        "multi_modal_inputs": {**inputs.plain, PIXELS_OF: "000001-00000"},
    }
    grid = inputs.plain["image_grid_thw"]
    prompt = {"pixels": inputs.pixels.to_plain(), "image_grid_thw": grid, "raw_prompt": None}
    for_models = {name: value for name, value in ours.items() if name not in NOT_FOR_MODELS}
    once = encoded_bytes(prompt)
    pixels = encoded_bytes({"pixels": prompt["pixels"]})
    return {
        "verl_response": encoded_bytes(verl),
        "response_alone": encoded_bytes(ours) + once,
        "response_in_group": encoded_bytes(ours) + once // GROUP,
        "verl_fetched_by_a_phase": encoded_bytes(verl),
        "fetched_by_a_phase": encoded_bytes(for_models),
        "fetched_once": pixels,
    }


def encoded_bytes(row: Mapping[str, Any]) -> int:
    """Bytes of a row as TransferQueue sends it."""
    return int(calc_packed_size(encode({name: [value] for name, value in row.items()})))


def step_model(
    front_end: Mapping[int, Mapping[str, float]], buffer: Mapping[int, Mapping[str, int]], gpus: int
) -> dict[int, dict[str, float]]:
    """A step of 384 prompts x 5 responses x 20 probes on ``gpus`` servers, by image tokens.

    A server's event loop: prompts / servers x (first + (n - 1) siblings + n K probes). Bytes: all
    responses, put once and fetched by three phases; a prompt's pixels are fetched once by each rank
    that has one of its responses, which are on ranks by chance.
    """
    ranks_of_a_prompt = gpus * (1 - (1 - 1 / gpus) ** GROUP)
    prompts = PROMPTS_PER_STEP / gpus
    responses = PROMPTS_PER_STEP * GROUP
    found = {}
    for tokens, ms in front_end.items():
        sizes = buffer[tokens]
        found[tokens] = {}
        for way, prefix in (("verl", "verl_"), ("ours", "")):
            loop_ms = ms[f"{prefix}first"] + (GROUP - 1) * ms[f"{prefix}sibling"]
            loop_ms += GROUP * NUM_ANCHORS * ms[f"{prefix}probe"]
            put = sizes["verl_response" if way == "verl" else "response_in_group"]
            fetched = sizes[f"{prefix}fetched_by_a_phase"]
            found[tokens][f"{way}_loop_s"] = round(prompts * loop_ms / 1e3, 2)
            found[tokens][f"{way}_put_gib"] = round(responses * put / 2**30, 3)
            once = PROMPTS_PER_STEP * ranks_of_a_prompt * sizes.get(f"{prefix}fetched_once", 0)
            total = responses * fetched * len(PHASES) + once
            found[tokens][f"{way}_fetched_gib"] = round(total / 2**30, 3)
    return found


def show(result: Mapping[str, Any]) -> None:
    """Tables of the figures and of their ratios."""
    print("front end, CPU ms: first response / sibling / probe; verl -> ours")
    for tokens, ms in result["front_end_ms"].items():
        pairs = (f"{ms[f'verl_{k}']:.2f} -> {ms[k]:.2f}" for k in ("first", "sibling", "probe"))
        ratio = ms["verl_probe"] / ms["probe"]
        print(f"  {tokens:>5} image tokens: {' / '.join(pairs)}; a probe costs 1/{ratio:.0f}")
    token = result["decoded_token_us"]
    ratio = token["verl"] / token["ours"]
    print(f"a decoded token, CPU us: {token['verl']:.1f} -> {token['ours']:.1f}, 1/{ratio:.1f}")
    counts = result["counts"]
    print(
        f"image-processor runs of a worker, {GROUP} responses: "
        f"{counts['processor_runs_verl']} -> {counts['processor_runs']}"
    )
    print("bytes per response: verl -> alone / in a group; fetched by a phase")
    for tokens, sizes in result["bytes"].items():
        verl = sizes["verl_response"]
        print(
            f"  {tokens:>5} image tokens: {verl:,} -> 1/{verl / sizes['response_alone']:.1f} / "
            f"1/{verl / sizes['response_in_group']:.1f}; "
            f"{sizes['fetched_by_a_phase']:,}, and {sizes['fetched_once']:,} once"
        )
    print(f"a step of {PROMPTS_PER_STEP} prompts x {GROUP} responses x {NUM_ANCHORS} probes")
    for gpus, model in result["model"].items():
        for tokens, row in model.items():
            print(f"  {gpus:>2} GPUs, {tokens:>5} image tokens: {row}")


if __name__ == "__main__":
    sys.exit(main())
