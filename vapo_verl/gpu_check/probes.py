"""Stage `probes`: the cost of K anchors per response in a rollout.

Responses have different lengths, each prompt has an image, and siblings share a prompt. The prober
of training probes each response as soon as it is done, while others still decode. The rollout is
repeated with each K over empty caches. Shapes of Qwen2.5-VL-7B with 16 decoder layers, dummy
weights.
"""

import asyncio
import itertools
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vapo_verl.anchors import (
    AnchorResult,
    Probes,
    SampleKey,
    bind_question,
    plan_anchors,
    probe_anchors,
    token_texts,
)
from vapo_verl.config import AnchorConfig
from vapo_verl.data.claims_column import Claim
from vapo_verl.digits.model import model_dir
from vapo_verl.gpu_check.case import Check, require
from vapo_verl.gpu_check.parity import VISION_TOKENS
from vapo_verl.gpu_check.results import Figure, significant

PROMPT = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is the sum of the top row?"
    "<|im_end|>\n<|im_start|>assistant\n"
)
CLAIMS = tuple(
    Claim(text=f"The digit in the {row} row at place {place} is {digit}.", label=digit % 2 == 0)
    for row, place, digit in itertools.product(("top", "bottom"), (1, 2, 3), (1, 2, 3, 4))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes of the rollouts."""

    num_prompts: int
    siblings: int
    image_tokens: int
    shortest: int
    longest: int
    """Limits of the lengths of responses, in tokens."""
    num_anchors: tuple[int, ...]

    @property
    def num_responses(self) -> int:
        return self.num_prompts * self.siblings


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Times and counts of one rollout."""

    wall_s: float
    decoded_s: float
    """From the start to the last response's last token."""
    frontend_s: float
    """CPU seconds of the front end: tokens, images and requests, in one process."""
    results: Sequence[AnchorResult]

    @property
    def prefilled(self) -> int:
        return sum(r.num_prompt_tokens - r.num_cached_tokens for r in self.results)


def run(check: Check) -> None:
    if check.device == "cuda":
        plan = Plan(
            num_prompts=64,
            siblings=4,
            image_tokens=1024,
            shortest=64,
            longest=384,
            num_anchors=(8, 20),
        )
    else:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
        plan = Plan(
            num_prompts=3,
            siblings=2,
            image_tokens=16,
            shortest=8,
            longest=24,
            num_anchors=(2, 4),
        )
    asyncio.run(_run(check, plan))


async def _run(check: Check, plan: Plan) -> None:
    started: list[Bench] = []

    def start() -> Mapping[str, Figure]:
        started.append(Bench(check, plan))
        return {"responses": plan.num_responses, "image_tokens": plan.image_tokens}

    if not check.case("engine", start, needs_s=20):
        return
    bench, rollouts = started[0], dict[int, Rollout]()
    try:
        await bench.rollout(0)  # compiles, and is not counted
        for number in (0, *plan.num_anchors):
            rollouts[number] = await bench.rollout(number)
            check.case(f"K = {number}", lambda: _figures(plan, rollouts, number))  # noqa: B023
            if check.seconds_left < 2 * rollouts[number].wall_s:
                break
    finally:
        bench.close()


def _figures(plan: Plan, rollouts: Mapping[int, Rollout], number: int) -> Mapping[str, Figure]:
    rollout, bare = rollouts[number], rollouts[0]
    expected = number * plan.num_responses
    require(len(rollout.results) == expected, f"{len(rollout.results)} probes, not {expected}")
    figures: dict[str, Figure] = {
        "rollout_s": significant(rollout.wall_s, 3),
        "frontend_cpu_s": significant(rollout.frontend_s, 3),
    }
    if not number:
        return figures
    added, front = rollout.wall_s - bare.wall_s, rollout.frontend_s - bare.frontend_s
    return {
        **figures,
        "probes": expected,
        "prefilled_tokens_a_probe": significant(rollout.prefilled / expected, 3),
        "frontend_ms_a_probe": significant(1e3 * front / expected),
        "tail_s": significant(rollout.wall_s - rollout.decoded_s),
        "added_percent_of_rollout": significant(100 * added / rollout.wall_s),
    }


class Bench:
    """An engine, and rollouts on it."""

    def __init__(self, check: Check, plan: Plan) -> None:
        from transformers import AutoTokenizer
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from vapo_verl.rollout.prober import Prober
        from vapo_verl.rollout.server import without_text

        self._plan, self._settings = plan, AnchorConfig(min_gap=1)
        on_gpu = check.device == "cuda"
        model = check.random_model("7b", 16, 4) if on_gpu else model_dir()
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._prompt_ids = self._tokenizer.encode(PROMPT, add_special_tokens=False)
        self._images = [_noise(plan.image_tokens, seed) for seed in range(plan.num_prompts)]
        sizes = [n for n in (1, 8, 32, 64, 128, 256) if n <= plan.num_responses]
        self._llm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=str(model),
                dtype="bfloat16" if on_gpu else "float32",
                load_format="dummy" if on_gpu else "auto",
                max_model_len=plan.image_tokens + len(self._prompt_ids) + plan.longest + 128,
                max_num_seqs=plan.num_responses,
                max_num_batched_tokens=8192 if on_gpu else 1024,
                gpu_memory_utilization=0.85,
                kv_cache_memory_bytes=None if on_gpu else 2**27,
                block_size=16,
                enforce_eager=not on_gpu,
                compilation_config={"cudagraph_capture_sizes": sizes} if on_gpu else {},
                scheduling_policy="priority",
                limit_mm_per_prompt={"image": 1, "video": 0},
                skip_mm_profiling=True,
                seed=0,
            )
        )
        self._question = bind_question(
            self._tokenizer,
            self._settings.question,
            self._settings.yes_words,
            self._settings.no_words,
        )
        self._prober = Prober(
            self,  # type: ignore[arg-type]  # its probe is all that is used
            self._question,
            max_tokens_in_flight=self._settings.max_tokens_in_flight,
            by_priority=True,
        )
        self._as_server = without_text
        self._count = itertools.count()

    def close(self) -> None:
        self._llm.shutdown()

    async def rollout(self, num_anchors: int) -> Rollout:
        """All responses at once over empty caches, each probed when it is done."""
        require(await self._llm.reset_prefix_cache(), "the prefix cache is in use")
        await self._llm.reset_mm_cache()
        await self._llm.reset_encoder_cache()
        plan, ends, results = self._plan, list[float](), list[AnchorResult]()

        async def respond(prompt: int, sibling: int) -> None:
            image = self._images[prompt]
            key = SampleKey(seed=0, step=0, prompt_uid=str(prompt), sample=sibling)
            length = random.Random(key.sampling_seed()).randint(plan.shortest, plan.longest)
            ids = await self._respond(image, length)
            ends.append(time.perf_counter())
            anchors = plan_anchors(
                token_texts(self._tokenizer, ids),
                CLAIMS,
                num_anchors=num_anchors,
                placement="random",
                min_gap=self._settings.min_gap,
                rng=key.generator("anchors"),
            )
            ask = self._prober.asker({"images": [image]})
            results.extend(await probe_anchors(ask, self._question, anchors, self._prompt_ids, ids))

        start, cpu = time.perf_counter(), time.process_time()
        places = itertools.product(range(plan.num_prompts), range(plan.siblings))
        await asyncio.gather(*(respond(prompt, sibling) for prompt, sibling in places))
        return Rollout(
            wall_s=time.perf_counter() - start,
            decoded_s=max(ends) - start,
            frontend_s=time.process_time() - cpu,
            results=results,
        )

    async def _respond(self, image: Image.Image, length: int) -> list[int]:
        sampling = {
            "max_tokens": length,
            "ignore_eos": True,
            "logprobs": 0,
            "logit_bias": dict.fromkeys(VISION_TOKENS, -100.0),
        }
        output = await self._generate(self._prompt_ids, sampling, [image], 0)
        return list(output.outputs[0].token_ids)

    async def probe(
        self,
        probes: Probes,
        sampling_params: Mapping[str, Any],
        image_data: Sequence[Any],
        priority: int,
    ) -> list[Any]:
        """As `VapoHttpServer.probe`, without Ray in between."""
        from verl.workers.rollout.replica import TokenOutput

        sampling = {**sampling_params, "logprobs": 0}
        outputs = await asyncio.gather(
            *(self._generate(ids, sampling, image_data, priority) for ids in probes.prompts())
        )
        answers = [output.outputs[0] for output in outputs]
        return [
            TokenOutput(
                token_ids=list(answer.token_ids),
                log_probs=[answer.logprobs[0][answer.token_ids[0]].logprob],
                extra_fields={"num_cached_tokens": output.num_cached_tokens},
            )
            for output, answer in zip(outputs, answers, strict=True)
        ]

    async def _generate(
        self,
        ids: list[int],
        sampling: Mapping[str, Any],
        images: Sequence[Image.Image],
        priority: int,
    ) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        prompt = {"prompt_token_ids": ids, "multi_modal_data": {"image": list(images)}}
        asked = self._as_server(sampling)
        params = SamplingParams(**asked, output_kind=RequestOutputKind.FINAL_ONLY)
        name = f"request-{next(self._count)}"
        async for output in self._llm.generate(prompt, params, name, priority=priority):
            last = output
        return last


def _noise(image_tokens: int, seed: int) -> Image.Image:
    side = 28 * int(image_tokens**0.5)
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
