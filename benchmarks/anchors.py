"""Cost of probing K anchors in every response, in four ways, in real vLLM engines.

    python benchmarks/anchors.py [--quick] [--lengths 64 1024] [--num-anchors 1 20] [--scale 8]

Each way probes the same claims at the same cuts of the same responses:

    ours      the rollout's own tokens up to the cut, then the question; prefix and processor cache
    shared    as ours, and the probes of a response share the processed image of its prompt
    text      decoded, cut in characters, tokenised again after the rollout; both caches on
    released  the same text, both caches off: each probe is prefilled in full, image included

Part 1 sends all probes of finished responses at once, and nothing else runs. Before, untimed, the
responses are replayed into the cache, which leaves the same blocks as decoding. Tokens prefilled
are prompt tokens minus vLLM's `num_cached_tokens`. Part 2 times rollouts whose responses end at
different times and are probed immediately, against the same rollouts without probes. Part 3 sends
the probes of a response in three orders, with the response in the cache and without. Part 4
measures the time of a probe by process, and the savings of cheaper requests.

Ways take turns within a round; times are medians over rounds. CPU seconds are summed over all
processes; other work on the machine affects them less. Prints tables and one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from statistics import median
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # `encoder_runs` is sent to the worker

import numpy as np
import psutil
from PIL import Image
from transformers import AutoProcessor

from vapo_verl.anchors import SampleKey, bind_question, plan_anchors, token_texts
from vapo_verl.config import AnchorConfig
from vapo_verl.data.claims_column import Claim
from vapo_verl.digits.claims import sample_claims
from vapo_verl.digits.model import model_dir
from vapo_verl.digits.questions import sample_question
from vapo_verl.digits.scene import render, sample_scene, scan_pool

WAYS = ("ours", "shared", "text", "released")
ORDERS = ("longest first", "shortest first", "random")
REQUESTS = ("ours", "image id", "shared", "shared, lean")
"""Requests of part 4: the image with every probe; the same with a name, so that it is not hashed;
its processed form; the same without detokenisation or a copy of the sampling parameters."""
FORBIDDEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|im_end|>")
"""Tokens banned in responses. Ends of reasoning are banned, too, so that responses can have any
length and are cut everywhere."""
SIDE = 2
"""Rows and columns of a scene."""
Plan = list[tuple[int, str]]
"""Cuts and claims of a response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A prompt, and the response that is probed."""

    name: str
    image: Image.Image
    prompt_text: str
    prompt_ids: list[int]
    """With one image token, which vLLM expands."""
    claims: tuple[Claim, ...]
    response_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Times of one measurement in seconds: wall time, and CPU time by process."""

    wall: float
    frontend: float
    engine: float
    worker: float
    """Engine and worker may poll while they wait for each other; that counts."""

    @property
    def cpu(self) -> float:
        return self.frontend + self.engine + self.worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Cost of probes that were sent together."""

    probes: int
    prompt_tokens: int
    prefilled: int
    images_processed: int
    images_encoded: int
    times: Times


def main() -> None:
    asyncio.run(run(parse()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--num-anchors", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--responses", type=int, default=8, help="of each length, in part 1")
    parser.add_argument("--prompts", type=int, default=48, help="of a rollout, in part 2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--scale", type=int, default=1, help="factor on the images' width: 8 for 256 tokens"
    )
    parser.add_argument("--quick", action="store_true", help="a small run without blocks of 128")
    options = parser.parse_args()
    if options.quick:
        options.lengths, options.num_anchors = [64, 256], [1, 20]
        options.responses, options.prompts, options.rounds = 2, 8, 1
    return options


async def run(options: argparse.Namespace) -> None:
    bench = Bench(options)
    engines = {"cached": Engine(options), "released": Engine(options, caches=False)}
    rollouts = await bench.rollouts(engines["cached"])
    typical = sorted(options.lengths)[len(options.lengths) // 2]
    some = shortened(rollouts, typical)
    results: dict[str, Any] = {"options": vars(options)}
    results["ways"] = await part_ways(bench, engines, rollouts)
    engines["released"].llm.shutdown()
    results["slopes"] = slopes(results["ways"])
    results["overlap"] = await part_overlap(bench, engines["cached"])
    print(f"\nresponses of {typical} tokens, K = {max(options.num_anchors)}:")
    results["order"] = await part_order(bench, engines["cached"], some)
    results["requests"] = await part_requests(bench, engines["cached"], some)
    engines["cached"].llm.shutdown()
    if not options.quick:
        large = Engine(options, block_size=128)
        cost = await bench.cost(large, "ours", some, bench.plans(some, max(options.num_anchors)))
        row = {"block_size": 128, **middle([cost])}
        results["blocks"] = table([row], "block_size:d probes:d prefilled:d")
        large.llm.shutdown()
    print(json.dumps(results))


class Engine:
    """AsyncLLM with the settings of the recipe `smoke`, but vLLM's default of chunked prefill."""

    def __init__(self, options: argparse.Namespace, caches: bool = True, block_size: int = 16):
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        longest, image_tokens = max(*options.lengths, 160), (SIDE * options.scale) ** 2
        others = set(psutil.Process().children(recursive=True))
        self.llm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=str(model_dir()),
                dtype="float32",
                enforce_eager=True,
                block_size=block_size,
                # text that is tokenised again can have more tokens than before
                max_model_len=min(4096, 256 + image_tokens + 2 * longest),
                max_num_seqs=80,
                kv_cache_memory_bytes=2**29,
                enable_prefix_caching=caches,
                mm_processor_cache_gb=1 if caches else 0,
                limit_mm_per_prompt={"image": 1, "video": 0},
                mm_processor_kwargs={"max_pixels": 784 * max(image_tokens, 64)},
                seed=0,
            )
        )
        self._processes = set(psutil.Process().children(recursive=True)) - others
        self._caches = caches
        self._count = 0

    async def generate(self, prompt: Any, **sampling: Any) -> Any:
        from vllm import SamplingParams

        self._count += 1
        number = f"request-{self._count}"
        async for output in self.llm.generate(prompt, SamplingParams(**sampling), number):
            last = output
        assert last.outputs[0].token_ids, "the engine refused a request"
        return last

    async def generate_all(self, prompts: Iterable[Any], **sampling: Any) -> list[Any]:
        return await asyncio.gather(*(self.generate(prompt, **sampling) for prompt in prompts))

    def process(self, rollout: Rollout, named: bool = False) -> Any:
        """The prompt with its image processed; the engine must get it before a `going_on`."""
        preprocessor = self.llm.input_processor.input_preprocessor
        return preprocessor.preprocess(image_prompt(rollout, (), named))

    def going_on(self, processed: Any, ids: Iterable[int], first: bool = False) -> Any:
        """A processed prompt with more tokens.

        The engine keeps an image that it was sent; requests after the first one refer to it. Every
        use must also be counted at this end of the cache, since each end evicts by its own count.
        """
        from vllm.inputs.engine import mm_input

        items, hashes = processed["mm_kwargs"]["image"], processed["mm_hashes"]["image"]
        cache = self.llm.renderer.mm_processor_cache
        if not first and cache is not None:
            assert all(cache.is_cached(hashes))
            for name in hashes:
                cache.touch_sender_cache_item(name)
            items = [cache.get_and_update_item(None, name)[0] for name in hashes]
        return mm_input(
            prompt_token_ids=[*processed["prompt_token_ids"], *ids],
            mm_kwargs={"image": items},
            mm_hashes=processed["mm_hashes"],
            mm_placeholders=processed["mm_placeholders"],
        )

    async def replay(self, rollouts: Sequence[Rollout], named: bool = False) -> list[Any]:
        """Put the caches in the state after these rollouts; returns the processed prompts."""
        await self.forget()
        await self.llm.reset_mm_cache()
        if not self._caches:
            return [None] * len(rollouts)
        processed = [self.process(rollout, named) for rollout in rollouts]
        pairs = zip(processed, rollouts, strict=True)
        prompts = [self.going_on(p, rollout.response_ids, first=True) for p, rollout in pairs]
        await self.generate_all(prompts, max_tokens=1)
        return processed

    async def forget(self) -> None:
        """Empty the KV cache and that of encoded images."""
        assert await self.llm.reset_prefix_cache()
        await self.llm.reset_encoder_cache()

    async def images_encoded(self) -> int:
        return sum(await self.llm.collective_rpc(encoder_runs))

    async def time(self, work: Callable[[], Awaitable[Any]]) -> tuple[Any, Times]:
        before, start = self._cpu_s(), time.perf_counter()
        result = await work()
        wall, after = time.perf_counter() - start, self._cpu_s()
        front, engine, worker = (
            sum(after[name] - before[name] for name in after if name.startswith(kind))
            for kind in ("frontend", "VLLM::Engine", "VLLM::Worker")
        )
        return result, Times(wall=wall, frontend=front, engine=engine, worker=worker)

    def _cpu_s(self) -> dict[str, float]:
        used = {process.name(): sum(process.cpu_times()[:2]) for process in self._processes}
        return {**used, "frontend": time.process_time()}


def encoder_runs(worker: Any) -> int:
    """Images that this worker has encoded since the first call of this function."""
    runner = worker.model_runner
    if not hasattr(runner, "images_encoded"):
        runner.images_encoded, execute = 0, runner._execute_mm_encoder

        def count(scheduled: Any) -> Any:
            runner.images_encoded += sum(map(len, scheduled.scheduled_encoder_inputs.values()))
            return execute(scheduled)

        runner._execute_mm_encoder = count
    return runner.images_encoded


def image_prompt(rollout: Rollout, ids: Iterable[int], named: bool = False) -> dict[str, Any]:
    """The prompt with more tokens, as veRL's server passes it to vLLM."""
    names = {"multi_modal_uuids": {"image": [rollout.name]}} if named else {}
    ids, images = [*rollout.prompt_ids, *ids], {"image": [rollout.image]}
    return {"prompt_token_ids": ids, "multi_modal_data": images, **names}


class Bench:
    """Prompts, responses, cuts and questions."""

    images_processed = 0
    """Runs of the image processor in this process."""

    def __init__(self, options: argparse.Namespace):
        processor = AutoProcessor.from_pretrained(model_dir())
        self._count_runs(type(processor.image_processor))
        self.options, self.config, self.tokenizer = options, AnchorConfig(), processor.tokenizer
        self.question = bind_question(
            self.tokenizer, self.config.question, self.config.yes_words, self.config.no_words
        )
        bias = dict.fromkeys((self.question.yes_id, self.question.no_id), 100.0)
        self.sampling: dict[str, Any] = {"max_tokens": 1, "logprobs": 0, "logit_bias": bias}
        ends = [self._encode(text)[0] for text in ("</think>", "\\boxed")]
        forbidden = [*self.tokenizer.convert_tokens_to_ids(list(FORBIDDEN)), *ends]
        bias = dict.fromkeys(forbidden, -100.0)
        self.response_sampling: dict[str, Any] = {"ignore_eos": True, "logit_bias": bias}

    @classmethod
    def _count_runs(cls, image_processor: Any) -> None:
        preprocess = image_processor.preprocess

        def counted(*args: Any, **kwargs: Any) -> Any:
            cls.images_processed += 1
            return preprocess(*args, **kwargs)

        image_processor.preprocess = counted

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def prompt(self, name: str) -> Rollout:
        rng = random.Random(name)
        scene = sample_scene(rng, scan_pool("train"), SIDE, SIDE)
        content = [{"type": "image"}, {"type": "text", "text": sample_question(rng, scene).text}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        image, claims = render(scene, seed=name), sample_claims(rng, scene)
        return Rollout(
            name=name,
            image=image.resize((self.options.scale * image.width,) * 2),
            prompt_text=text,
            prompt_ids=self._encode(text),
            claims=tuple(Claim(text=item.claim.text, label=item.label) for item in claims),
        )

    async def rollouts(self, engine: Engine) -> list[Rollout]:
        """Responses of the largest length."""
        prompts = [self.prompt(f"part 1/{index}") for index in range(self.options.responses)]
        length = max(self.options.lengths)
        return await asyncio.gather(*(self.respond(engine, prompt, length) for prompt in prompts))

    async def respond(
        self, engine: Engine, prompt: Rollout, length: int, processed: Any = None
    ) -> Rollout:
        output = await engine.generate(
            processed or image_prompt(prompt, ()), **self.response_sampling, max_tokens=length
        )
        return replace(prompt, response_ids=tuple(output.outputs[0].token_ids))

    def plans(self, rollouts: Iterable[Rollout], num_anchors: int) -> list[Plan]:
        return [self.plan(rollout, num_anchors) for rollout in rollouts]

    def plan(self, rollout: Rollout, num_anchors: int) -> Plan:
        key = SampleKey(seed=0, step=0, prompt_uid=rollout.name, sample=0)
        anchors = plan_anchors(
            token_texts(self.tokenizer, rollout.response_ids),
            rollout.claims,
            num_anchors=num_anchors,
            placement="random",
            min_gap=self.config.min_gap,
            rng=key.generator("anchors"),
        )
        return [(anchor.position, anchor.claim) for anchor in anchors]

    def probe(
        self, engine: Engine, way: str, rollout: Rollout, processed: Any, cut: int, claim: str
    ) -> Any:
        """The prompt of one probe."""
        if way in ("text", "released"):
            return self._text_probe(rollout, cut, claim)
        ids = [*rollout.response_ids[:cut], *self.question.token_ids(claim)]
        if way.startswith("shared"):
            return engine.going_on(processed, ids)
        return image_prompt(rollout, ids, named=way == "image id")

    def _text_probe(self, rollout: Rollout, cut: int, claim: str) -> dict[str, Any]:
        """The decoded response, cut at the number of characters in the tokens before the cut."""
        ids = rollout.response_ids
        before, text = (
            self.tokenizer.decode(i, skip_special_tokens=True) for i in (ids[:cut], ids)
        )
        question = self.config.question.replace("{claim}", claim)
        text = rollout.prompt_text + text[: len(before)] + question
        return {"prompt": text, "multi_modal_data": {"image": [rollout.image]}}

    async def ask(
        self, engine: Engine, way: str, rollouts: Any, plans: Any, processed: Any, **more: Any
    ) -> list[Any]:
        """Build all probes and send them at once, in the order of the plans."""
        prompts = [
            self.probe(engine, way, rollout, prompt, cut, claim)
            for rollout, plan, prompt in zip(rollouts, plans, processed, strict=True)
            for cut, claim in plan
        ]
        return await engine.generate_all(prompts, **self.sampling, **more)

    async def cost(
        self,
        engine: Engine,
        way: str,
        rollouts: Sequence[Rollout],
        plans: Sequence[Plan],
        cold: bool = False,
        **more: Any,
    ) -> Cost:
        """Replay the rollouts, then send their probes; `cold`: with empty caches."""
        processed = await engine.replay(rollouts, named=way == "image id")
        if cold:
            await engine.forget()
        images, encoded = Bench.images_processed, await engine.images_encoded()
        outputs, times = await engine.time(
            lambda: self.ask(engine, way, rollouts, plans, processed, **more)
        )
        prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
        return Cost(
            probes=len(outputs),
            prompt_tokens=prompt_tokens,
            prefilled=prompt_tokens - sum(output.num_cached_tokens for output in outputs),
            images_processed=Bench.images_processed - images,
            images_encoded=await engine.images_encoded() - encoded,
            times=times,
        )


def shortened(rollouts: Sequence[Rollout], length: int) -> list[Rollout]:
    return [replace(rollout, response_ids=rollout.response_ids[:length]) for rollout in rollouts]


async def in_turn(
    ways: Iterable[Any], rounds: int, measure: Callable[[Any], Awaitable[Any]]
) -> dict[Any, list[Any]]:
    """Each way once a round, in an order that rotates; way -> one result a round."""
    ways = list(ways)
    results: dict[Any, list[Any]] = {way: [] for way in ways}
    for number in range(rounds):
        for index in range(len(ways)):
            way = ways[(number + index) % len(ways)]
            results[way].append(await measure(way))
    return results


def middle(costs: Sequence[Cost]) -> dict[str, Any]:
    """Counts of the last round (they hardly differ), and medians of the times."""
    row = asdict(costs[-1])
    del row["times"]
    row["wall_s"] = median(cost.times.wall for cost in costs)
    return row | {"cpu_s": median(cost.times.cpu for cost in costs)}


def table(rows: list[dict[str, Any]], columns: str) -> list[dict[str, Any]]:
    """Print some columns, given as `name:format`; the JSON line has all of them."""
    formats = [column.rpartition(":")[::2] for column in columns.split()]
    cells = [[name.replace("_", " ") for name, _ in formats]]
    cells += [[format(row[name], form) for name, form in formats] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print()
    for line in cells:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)))
    return rows


async def part_ways(
    bench: Bench, engines: dict[str, Engine], rollouts: Sequence[Rollout]
) -> list[dict[str, Any]]:
    """One row for each length, K and way."""

    async def cell(length: int, num_anchors: int, rounds: int) -> list[dict[str, Any]]:
        cut = shortened(rollouts, length)
        plans = bench.plans(cut, num_anchors)

        async def measure(way: str) -> Cost:
            engine = engines["released" if way == "released" else "cached"]
            return await bench.cost(engine, way, cut, plans)

        costs = await in_turn(WAYS, rounds, measure)
        rows = []
        for way in WAYS:
            row = {"length": length, "K": num_anchors, "way": way, **middle(costs[way])}
            pairs = list(zip(costs[way], costs["ours"], strict=True))
            row["x_prefilled"] = median(a.prefilled / b.prefilled for a, b in pairs)
            row["x_wall"] = median(a.times.wall / b.times.wall for a, b in pairs)
            row["x_cpu"] = median(a.times.cpu / max(b.times.cpu, 0.01) for a, b in pairs)
            rows.append(row)
        return rows

    options = bench.options
    await cell(max(options.lengths), max(options.num_anchors), 1)  # warm-up
    cells = product(options.lengths, options.num_anchors)
    return table(
        [row for length, number in cells for row in await cell(length, number, options.rounds)],
        "length:d K:d way:s probes:d prompt_tokens:d prefilled:d x_prefilled:.1f wall_s:.3f "
        "x_wall:.1f cpu_s:.2f x_cpu:.1f images_processed:d images_encoded:d",
    )


def slopes(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Milliseconds of one more probe, by least squares over K at each length."""
    lengths = sorted({row["length"] for row in rows})
    fits: list[dict[str, Any]] = []
    for way, clock in product(WAYS, ("wall_s", "cpu_s")):
        fit: dict[str, Any] = {"ms_a_probe": f"{way}, {clock[:-2]}"}
        for length in lengths:
            cells = [row for row in rows if (row["way"], row["length"]) == (way, length)]
            x, y = [row["probes"] for row in cells], [1e3 * row[clock] for row in cells]
            fit[str(length)] = float(np.polyfit(x, y, 1)[0]) if len(cells) > 1 else y[0] / x[0]
        fits.append({**fit, "longest/shortest": fit[str(lengths[-1])] / fit[str(lengths[0])]})
    columns = [f"{name}:.2f" for name in (*lengths, "longest/shortest")]
    return table(fits, " ".join(["ms_a_probe:s", *columns]))


async def part_overlap(bench: Bench, engine: Engine) -> list[dict[str, Any]]:
    """Full rollouts; each way also with K = 0."""
    options = bench.options
    prompts = [bench.prompt(f"part 2/{index}") for index in range(options.prompts)]
    lengths = np.random.default_rng(0).integers(32, 161, len(prompts)).tolist()

    async def respond(prompt: Rollout, length: int, way: str, num_anchors: int) -> int:
        processed = engine.process(prompt)
        rollout = await bench.respond(engine, prompt, length, processed)
        plans = bench.plans([rollout], num_anchors)
        return len(await bench.ask(engine, way, [rollout], plans, [processed]))

    async def rollout(kind: tuple[str, int]) -> tuple[list[int], Times]:
        await engine.replay([])
        pairs = list(zip(prompts, lengths, strict=True))
        return await engine.time(lambda: asyncio.gather(*(respond(*p, *kind) for p in pairs)))

    await rollout(("ours", max(options.num_anchors)))  # warm-up
    kinds = list(product(("ours", "shared"), (0, *options.num_anchors)))
    results = await in_turn(kinds, options.rounds, rollout)
    rows = []
    for way, number in kinds:
        probes = sum(results[way, number][0][0])
        row: dict[str, Any] = {"way": way, "K": number, "probes": probes}
        for clock in ("wall", "cpu"):
            both = zip(results[way, number], results[way, 0], strict=True)
            times = [(getattr(a, clock), getattr(b, clock)) for (_, a), (_, b) in both]
            row[f"{clock}_s"] = median(a for a, _ in times)
            row[f"{clock}_%"] = 100 * median(a / max(b, 0.01) - 1 for a, b in times)
            row[f"{clock}_ms_a_probe"] = 1e3 * median(a - b for a, b in times) / max(probes, 1)
        rows.append(row)
    columns = " ".join(f"{c}_s:.3f {c}_%:.1f {c}_ms_a_probe:.2f" for c in ("wall", "cpu"))
    return table(rows, f"way:s K:d probes:d {columns}")


async def part_order(
    bench: Bench, engine: Engine, rollouts: Sequence[Rollout]
) -> list[dict[str, Any]]:
    """One row for each order of a response's probes and each content of the cache."""
    plans = bench.plans(rollouts, max(bench.options.num_anchors))

    def ordered(plan: Plan, order: str) -> Plan:
        if order == "random":
            return random.Random(0).sample(plan, len(plan))
        return sorted(plan, reverse=order == "longest first")

    async def measure(kind: tuple[str, str]) -> Cost:
        cold = kind[0] == "nothing"
        return await bench.cost(
            engine, "shared", rollouts, [ordered(plan, kind[1]) for plan in plans], cold
        )

    costs = await in_turn(product(("response", "nothing"), ORDERS), bench.options.rounds, measure)
    rows = [{"cached": k[0], "order": k[1], **middle(cost)} for k, cost in costs.items()]
    return table(rows, "cached:s order:s prefilled:d wall_s:.3f cpu_s:.2f images_encoded:d")


async def part_requests(
    bench: Bench, engine: Engine, rollouts: Sequence[Rollout]
) -> list[dict[str, Any]]:
    """One row for each way to write the same requests."""
    from vllm.sampling_params import RequestOutputKind

    lean = {"detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY, "skip_clone": True}
    plans = bench.plans(rollouts, max(bench.options.num_anchors))

    async def measure(kind: str) -> Cost:
        more = lean if kind == "shared, lean" else {}
        return await bench.cost(engine, kind, rollouts, plans, **more)

    costs = await in_turn(REQUESTS, bench.options.rounds, measure)
    rows = []
    for kind in REQUESTS:
        row: dict[str, Any] = {"request": kind, **middle(costs[kind])}
        for clock in ("wall", "frontend", "engine", "worker"):
            seconds = median(getattr(cost.times, clock) for cost in costs[kind])
            row[f"{clock}_ms"] = 1e3 * seconds / row["probes"]
        rows.append(row)
    columns = "wall_ms:.2f frontend_ms:.2f engine_ms:.2f worker_ms:.2f"
    return table(rows, f"request:s prefilled:d {columns}")


if __name__ == "__main__":
    main()
