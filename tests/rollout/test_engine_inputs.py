"""Shared prompts over vLLM's own caches: what the sender holds back, the engine core has."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from vllm.multimodal.cache import (
    MultiModalProcessorOnlyCache,
    MultiModalProcessorSenderCache,
    MultiModalReceiverCache,
    ShmObjectStoreSenderCache,
)
from vllm.multimodal.inputs import MultiModalKwargsItem
from vllm.utils.mem_constants import GiB_bytes

from vapo_verl.rollout.engine_inputs import EngineInputs, PromptImages, PromptNotOpen, can_share

IMAGE_BYTES = 100


def model_config(num_images: float):
    """Room for so many images."""
    capacity = num_images * IMAGE_BYTES / GiB_bytes
    return SimpleNamespace(
        get_multimodal_config=lambda: SimpleNamespace(mm_processor_cache_gb=capacity)
    )


class AtOnce:
    """An executor without a thread."""

    def submit(self, call, *arguments):
        call(*arguments)


class Renderer:
    """vLLM's, for prompts [1, 9, 1] that stand for an image of three tokens; images are names."""

    def __init__(self, cache, config):
        self.mm_processor_cache, self.model_config = cache, config
        self.processed: list[str] = []
        self._mm_executor = AtOnce()

    async def render_cmpl_async(self, prompts):
        await asyncio.sleep(0)
        [prompt] = prompts
        images = prompt["multi_modal_data"]["image"]
        tokens = [t for one in prompt["prompt_token_ids"] for t in [one] * (3 if one == 9 else 1)]
        return [
            {
                "type": "multimodal",
                "prompt_token_ids": tokens,
                "mm_kwargs": {"image": [self.item(name) for name in images]},
                "mm_hashes": {"image": list(images)},
                "mm_placeholders": {"image": ["range"] * len(images)},
            }
        ]

    def item(self, name):
        cache = self.mm_processor_cache
        if cache is None or not cache.is_cached_item(name):
            self.processed.append(name)
            item = MultiModalKwargsItem.dummy(IMAGE_BYTES)
            return item if cache is None else cache.get_and_update_item((item, []), name)[0]
        return cache.get_and_update_item(None, name)[0]

    def clear_mm_cache(self):
        self.mm_processor_cache.clear_cache()

    async def clear_mm_cache_async(self):
        await asyncio.sleep(0)
        self.clear_mm_cache()


class Engine:
    """Adds requests as AsyncLLM does, to a core with the receiving cache."""

    def __init__(self, num_images=3.0, kind=MultiModalProcessorSenderCache):
        config = model_config(num_images)
        self.renderer = Renderer(kind(config) if kind else None, config)
        self.core = MultiModalReceiverCache(config)
        self.sent: list[dict] = []
        self.inputs = EngineInputs(self.renderer)

    async def add(self, engine_input):
        await asyncio.sleep(0)
        self.sent.append(engine_input)
        if self.renderer.mm_processor_cache is not None:
            for modality, hashes in engine_input["mm_hashes"].items():
                items = engine_input["mm_kwargs"][modality]
                for one, item in zip(hashes, items, strict=True):
                    self.core.get_and_update_item(item, one)  # asserts that it has or gets it

    async def render_and_add(self, prompt):
        [engine_input] = await self.renderer.render_cmpl_async([prompt])
        await self.add(engine_input)

    async def open(self, key, *images):
        await self.inputs.open(key, collapsed(images), images, {})

    async def request(self, key, images, *rest):
        prompt = {
            "prompt_token_ids": [*collapsed(images), *rest],
            "multi_modal_data": {"image": PromptImages(key=key)},
        }
        return await self.inputs.send(prompt, self.add)


def plain(*images):
    """The prompt of a request that names no open prompt."""
    return {"prompt_token_ids": [9], "multi_modal_data": {"image": list(images)}}


def collapsed(images):
    return [1, *[9] * len(images), 1]


def test_siblings_wait_for_the_one_that_processes_images_that_left_the_cache():
    """vLLM caches them in a thread, before its caller goes on."""

    class Slow(Renderer):
        async def render_cmpl_async(self, prompts):
            rendered = await super().render_cmpl_async(prompts)
            await asyncio.sleep(0.01)
            return rendered

    async def run():
        engine = Engine()
        engine.renderer.__class__ = Slow
        await engine.open("one", "a")
        await engine.request("one", ("a",))
        engine.renderer.clear_mm_cache()
        engine.core.clear_cache()
        first = asyncio.create_task(engine.request("one", ("a",)))
        await asyncio.sleep(0.005)
        await asyncio.gather(first, engine.request("one", ("a",)))

    asyncio.run(run())


def test_no_request_is_processed_by_vllm_while_the_cache_is_being_cleared():
    """It is cleared in a thread, and would lose images that vLLM has just found there."""

    class Slow(Renderer):
        is_clearing = False

        async def clear_mm_cache_async(self):
            self.is_clearing = True
            await asyncio.sleep(0.01)
            self.clear_mm_cache()
            self.is_clearing = False

    async def run():
        engine = Engine()
        engine.renderer.__class__ = Slow
        await engine.open("one", "a")

        async def add(_):
            assert not engine.renderer.is_clearing

        await asyncio.gather(*(engine.inputs.send(plain("b"), add) for _ in range(3)))

    asyncio.run(run())


def in_its_thread(kind):
    """The cache, for the renderer's thread alone: vLLM's LRU order breaks under changes of two."""

    def checked(method):
        def call(self, *args):
            assert threading.current_thread() is not threading.main_thread()
            return method(self, *args)

        return call

    changing = ("get_and_update_item", "touch_sender_cache_item", "clear_cache")
    return type("InItsThread", (kind,), {name: checked(getattr(kind, name)) for name in changing})


@pytest.mark.parametrize("kind", [MultiModalProcessorSenderCache, MultiModalProcessorOnlyCache])
def test_only_the_renderers_thread_changes_its_cache(kind):
    class Threaded(Renderer):
        async def in_thread(self, call, *arguments):
            return await asyncio.get_running_loop().run_in_executor(
                self._mm_executor, call, *arguments
            )

        async def render_cmpl_async(self, prompts):
            return await self.in_thread(asyncio.run, super().render_cmpl_async(prompts))

        async def clear_mm_cache_async(self):
            await self.in_thread(self.clear_mm_cache)

    async def run(thread):
        engine = Engine(num_images=2.5, kind=in_its_thread(kind))
        engine.renderer.__class__, engine.renderer._mm_executor = Threaded, thread
        for key in ("one", "two"):
            await engine.open(key, key)
        await engine.request("one", ["one"])
        await engine.open("three", "three")  # evicts what was used least recently
        num_renders = engine.inputs.num_renders
        await engine.request("one", ["one"])
        assert engine.inputs.num_renders == num_renders
        await engine.request("two", ["two"])
        await engine.inputs.send(plain("one"), engine.render_and_add)

    with ThreadPoolExecutor(1) as thread:
        asyncio.run(run(thread))


def test_images_that_do_not_fit_into_the_cache_are_an_error_and_harm_no_other_prompt():
    async def run():
        engine = Engine(num_images=1.5)
        await engine.open("two", "a", "b")
        await engine.open("one", "c")
        with pytest.raises(ValueError, match=r"the 2 images .*raise .*mm_processor_cache_gb, or"):
            await engine.request("two", ("a", "b"))
        engine.inputs.close("two")
        await engine.request("one", ("c",))

    asyncio.run(run())


@pytest.mark.parametrize(
    "kind", [MultiModalProcessorSenderCache, MultiModalProcessorOnlyCache, None]
)
def test_an_image_is_processed_once_and_its_pixels_are_sent_once(kind):
    async def run():
        engine = Engine(kind=kind)
        await engine.open("p", "cat")
        await asyncio.gather(*(engine.request("p", ["cat"], 7, n) for n in range(5)))
        return engine

    engine = asyncio.run(run())
    assert engine.renderer.processed == ["cat"]
    assert engine.inputs.num_renders == 1
    assert [r["prompt_token_ids"] for r in engine.sent] == [[1, 9, 9, 9, 1, 7, n] for n in range(5)]
    with_pixels = [r["mm_kwargs"]["image"][0] is not None for r in engine.sent]
    sent_once = kind is MultiModalProcessorSenderCache
    assert with_pixels == [True, *[not sent_once] * 4]


class InSharedMemory(ShmObjectStoreSenderCache):
    def __init__(self, config):
        """Without the memory."""


@pytest.mark.parametrize(
    ("kind", "can"),
    [
        (MultiModalProcessorSenderCache, True),
        (MultiModalProcessorOnlyCache, True),
        (None, True),
        (InSharedMemory, False),
    ],
)
def test_a_cache_that_counts_requests_by_their_processing_is_not_shared(kind, can):
    config = model_config(3)
    renderer = Renderer(kind and kind(config), config)
    engine = SimpleNamespace(renderer=renderer, get_supported_tasks=None)
    assert can_share(engine) is can


def test_two_prompts_with_one_image_send_it_with_whichever_asks_first():
    async def run():
        engine = Engine()
        await engine.open("a", "cat")
        await engine.open("b", "cat")
        await engine.request("b", ["cat"])
        await engine.request("a", ["cat"])
        return engine

    engine = asyncio.run(run())
    assert [r["mm_kwargs"]["image"][0] is not None for r in engine.sent] == [True, False]


def test_a_prompt_that_no_request_followed_leaves_no_promise():
    async def run():
        engine = Engine()
        await engine.open("a", "cat")
        engine.inputs.close("a")
        await engine.inputs.send(plain("cat"), engine.render_and_add)
        return engine

    assert asyncio.run(run()).sent[0]["mm_kwargs"]["image"][0] is not None


def test_a_prompt_that_is_closed_while_it_is_being_opened_is_closed():
    async def run():
        engine = Engine()
        opening = asyncio.ensure_future(engine.open("a", "cat"))
        await asyncio.sleep(0)
        engine.inputs.close("a")
        await opening
        with pytest.raises(PromptNotOpen):
            await engine.request("a", ["cat"])
        await engine.inputs.send(plain("cat"), engine.render_and_add)
        await engine.open("a", "cat")  # again
        await engine.request("a", ["cat"])
        return engine

    sent = asyncio.run(run()).sent
    assert sent[0]["mm_kwargs"]["image"][0] is not None and len(sent) == 2


def test_other_prompts_pass_as_they_are():
    async def passed(prompt):
        return await EngineInputs(Renderer(None, None)).send(prompt, echo)

    async def echo(prompt):
        return prompt

    for prompt in ("text", {"prompt_token_ids": [1]}, {"multi_modal_data": {"image": ["pixels"]}}):
        assert asyncio.run(passed(prompt)) is prompt


def test_unknown_prompts_and_other_tokens_are_refused():
    async def run():
        engine = Engine()
        with pytest.raises(PromptNotOpen, match="prompt p is not open"):
            await engine.request("p", ["cat"])
        await engine.open("p", "cat")
        with pytest.raises(ValueError, match="begin with its tokens"):
            await engine.request("p", ["cat", "dog"])
        engine.inputs.close("p")
        with pytest.raises(PromptNotOpen):
            await engine.request("p", ["cat"])

    asyncio.run(run())


@settings(max_examples=200)
@example(capacity=1.5, steps=[("open", 5), ("close", 5), ("plain", 1)], together=2)
@example(capacity=1.5, steps=[("open", 4), ("close", 4), ("plain", 0), ("open", 0)], together=2)
@example(  # what was sent before a reset is dropped unsent behind it, and asked for again
    capacity=4.5,
    steps=[(do, n) for do in ("open", "ask", "close", "reset", "open", "close") for n in (0,)]
    + [("open", 4), ("ask", 4)],
    together=1,
)
@example(  # image 0 is processed again, and others are sent before its next request
    capacity=2.5,
    steps=[(do, n) for n in (0, 1) for do in ("open", "ask")]
    + [("open", 4), ("open", 2), ("ask", 2), ("ask", 4)],
    together=1,
)
@given(
    capacity=st.sampled_from([1.5, 2.5, 4.5]),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["open", "ask", "ask", "ask", "close", "plain", "reset"]),
            st.integers(0, 5),
        ),
        max_size=40,
    ),
    together=st.integers(1, 8),
)
def test_whatever_the_order_the_core_has_or_gets_every_image(capacity, steps, together):
    """Images of two prompts overlap, caches hold fewer images than there are, steps interleave."""
    prompts = {n: [f"image {n % 4}"] for n in range(6)}

    opened, opening = set(), []

    async def one(engine, action, n, at_once):
        key, images = f"p{n}", prompts[n]
        if action == "open":
            opened.add(key)
            opening.append(key)
            await engine.open(key, *images)
            opening.remove(key)
        elif action == "close":
            engine.inputs.close(key)
            opened.discard(key)
        elif action == "ask":
            with suppress(PromptNotOpen):
                await engine.request(key, images, 5)
        elif not (opened or opening or any(prompts[n] == prompts[m] for m in at_once)):
            # vLLM's own requests do not meet images of prompts that are open
            await engine.inputs.send(plain(*images), engine.render_and_add)

    async def run():
        engine = Engine(capacity)
        for start in range(0, len(steps), together):
            now = steps[start : start + together]
            at_once = [n for action, n in now if action == "open"]
            await asyncio.gather(
                *(one(engine, *step, at_once) for step in now if step[0] != "reset")
            )
            if now != [step for step in now if step[0] != "reset"]:  # veRL: with nothing in flight
                engine.renderer.clear_mm_cache()
                engine.core.clear_cache()

    asyncio.run(run())
