"""Prompts with images, processed by vLLM once and continued with other tokens.

vLLM hashes, resizes and normalises the images of every request, and only then finds them in its
cache. The responses to a prompt and the probes of its anchors have the same images and begin with
the same tokens. So a server processes the prompt once, and a request that names the prompt is made
from the result: the same multimodal features, followed by other token ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vapo_verl.patches.upstream import in_image_thread

CACHE_KEY = "actor_rollout_ref.rollout.engine_kwargs.vllm.mm_processor_cache_gb"
_OF_THE_CACHE = ("is_cached_item", "get_and_update_item", "touch_sender_cache_item")
MAX_ATTEMPTS = 20
"""Limit of processing a request's images again because the cache has dropped them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptImages:
    """A reference to the images of a prompt that the server has opened.

    It travels through veRL's server as ``image_data`` and reaches vLLM as
    ``multi_modal_data["image"]``.
    """

    key: str
    """Key given to :meth:`EngineInputs.open`."""


class PromptNotOpen(RuntimeError):
    """A request names a prompt that this server has not opened, or has closed."""


@dataclass(slots=True, kw_only=True)
class _Open:
    images: Sequence[Any]
    options: Mapping[str, Any]
    collapsed: list[int]
    """The prompt's tokens as veRL sends them: one placeholder for each image."""
    engine_input: Mapping[str, Any]
    """vLLM's ``MultiModalInput``: as many placeholders as an image has tokens."""
    processing: asyncio.Lock = field(default_factory=asyncio.Lock)


class EngineInputs:
    """Processed prompts by key, for the requests of an ``AsyncLLM``.

    vLLM sends the pixels of an image to the engine core once, and the core keeps them in an LRU
    cache. vLLM takes the renderer's cache for a copy of it, since it sends each request when it has
    processed it. Here many requests follow one processing, and others come between. So requests go
    by a mirror of their own, which changes when they are sent: it holds what the engine core holds.
    An image that is neither in it nor waiting to be sent is processed again. A reset of vLLM's
    caches empties the renderer's: so an image has to be there, too. No thread but the renderer's
    may change that cache: there, images are touched once they are sent. Without a cache in the
    engine core, a prompt keeps its pixels, and each of its requests carries them.

    Args:
        renderer: the engine's; its pool of threads processes the images.
    """

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer
        self._open: dict[str, _Open] = {}
        self._opening: set[str] = set()
        """Keys of prompts that are being processed and were not closed."""
        self._unsent: dict[str, Any] = {}
        """Hash -> item that was processed and not sent since."""
        self._has_processed = False
        """Whether the renderer's cache may differ from the engine core's."""
        self._clearing = asyncio.Lock()
        self._sent = _mirror(renderer)
        """The engine core's cache; None if it has none."""
        self.num_renders = 0
        """Runs of vLLM's processor for prompts opened here."""

    async def open(
        self, key: str, collapsed: list[int], images: Sequence[Any], options: Mapping[str, Any]
    ) -> None:
        """Process a prompt; requests may name it by ``key`` until it is closed.

        Args:
            collapsed: the prompt's tokens, one placeholder for each image.
            images: its images, in the order of the placeholders.
            options: ``mm_processor_kwargs`` of its requests.
        """
        self._opening.add(key)
        try:
            engine_input = await self._process(collapsed, images, options)
        finally:
            is_wanted = key in self._opening
            self._opening.discard(key)
        opened = _Open(
            images=images, options=options, collapsed=collapsed, engine_input=engine_input
        )
        if is_wanted:
            self._open[key] = opened
        else:
            self._drop_unsent(opened)

    def close(self, key: str) -> None:
        """Forget a prompt, also one that is still being opened; unknown keys are ignored."""
        self._opening.discard(key)
        if (opened := self._open.pop(key, None)) is not None:
            self._drop_unsent(opened)

    def _drop_unsent(self, opened: _Open) -> None:
        """Free the pixels that no request has carried, and no other open prompt needs."""
        if unsent := self._unsent.keys() & _hashes(opened):
            for other in self._open.values():
                unsent -= set(_hashes(other))
            for one in unsent:
                del self._unsent[one]
            if unsent and self._sent is not None:  # it may know them from before a reset
                self._sent.clear_cache()

    async def send(self, prompt: Any, add_request: Callable[[Any], Awaitable[Any]]) -> Any:
        """Call ``add_request`` with vLLM's input for ``prompt``, and return its result.

        A prompt without :class:`PromptImages` is passed on as it is.

        Raises:
            PromptNotOpen: nobody opened the prompt.
            ValueError: the request does not begin with the prompt's tokens, or its images do not
                fit into the cache.
        """
        shared = _shared_images(prompt)
        if shared is None:
            if _has_images(prompt):
                await self._follow_vllm()
            return await add_request(prompt)
        opened = self._open.get(shared.key)
        if opened is None:
            raise PromptNotOpen(
                f"prompt {shared.key} is not open on this server, {len(self._open)} others are"
            )
        rest = _rest(prompt["prompt_token_ids"], opened)
        for _ in range(MAX_ATTEMPTS):
            # under the lock: while a sibling's request processes the images, the cache has them
            # before this side knows that they are not sent
            async with opened.processing:
                if (items := self._items(opened)) is not None:
                    break
                if self._holds_unknown(opened):
                    await self._clear()  # else the renderer makes no pixels of them
                opened.engine_input = await self._process(
                    opened.collapsed, opened.images, opened.options
                )
        else:  # the last image evicts the first, or other prompts all of them
            raise ValueError(
                f"the {len(opened.images)} images of a prompt do not stay in vLLM's processor "
                f"cache until they are sent; raise {CACHE_KEY}, or set it to 0"
            )
        tokens = [*opened.engine_input["prompt_token_ids"], *rest]
        # no await between `_items` and this call: requests leave in the order of their touches
        return await add_request(
            {**opened.engine_input, "prompt_token_ids": tokens, "mm_kwargs": items}
        )

    async def _process(
        self, tokens: list[int], images: Sequence[Any], options: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        self.num_renders += 1
        self._has_processed = True
        prompt = {"prompt_token_ids": tokens, "multi_modal_data": {"image": list(images)}}
        if options:
            prompt["mm_processor_kwargs"] = dict(options)
        [engine_input] = await self._renderer.render_cmpl_async([prompt])
        if self._sent is None:
            return engine_input
        for modality, hashes in engine_input["mm_hashes"].items():
            items = engine_input["mm_kwargs"][modality]
            new = zip(hashes, items, strict=True)
            self._unsent.update((one, item) for one, item in new if item is not None)
        return {**engine_input, "mm_kwargs": None}

    def _items(self, opened: _Open) -> Mapping[str, Any] | None:
        """A request's items, None for those that the engine core has; they count as sent.

        Returns None if images must be processed again.
        """
        if self._sent is None:
            return opened.engine_input["mm_kwargs"]
        cache, hashes = self._renderer.mm_processor_cache, _hashes(opened)
        if not all(cache.is_cached_item(one) and self._can_send(one) for one in hashes):
            return None
        for one in hashes:  # first all, as the engine core does: none evicts another
            self._sent.touch_sender_cache_item(one)
        in_image_thread(self._renderer, _touch, cache, hashes)
        return {
            modality: [self._item(one) for one in hashes]
            for modality, hashes in opened.engine_input["mm_hashes"].items()
        }

    def _holds_unknown(self, opened: _Open) -> bool:
        """Whether the renderer's cache has images whose pixels are nowhere else."""
        cache = self._renderer.mm_processor_cache
        return any(cache.is_cached_item(one) and not self._can_send(one) for one in _hashes(opened))

    def _can_send(self, one: str) -> bool:
        return one in self._unsent or self._sent.is_cached_item(one)

    def _item(self, one: str) -> Any:
        item = self._unsent.pop(one, None)
        self._sent.get_and_update_item(None if item is None else (item, []), one)
        return item

    async def _follow_vllm(self) -> None:
        """Before a request that vLLM makes itself: it goes by the renderer's cache alone."""
        if self._sent is not None:
            self._sent.clear_cache()
            await self._clear(only_if_processed=True)

    async def _clear(self, *, only_if_processed: bool = False) -> None:
        """Clear the renderer's cache, in the thread that fills it.

        Nobody returns while another task's clearing goes on: vLLM processes a request of its own in
        this thread, and would miss an image that it has just found.
        """
        async with self._clearing:
            if self._has_processed or not only_if_processed:
                self._has_processed = False
                await self._renderer.clear_mm_cache_async()


def _mirror(renderer: Any) -> Any:
    """An empty cache with the order and the size of the engine core's; None if it has none."""
    from vllm.multimodal.cache import MultiModalProcessorSenderCache

    if not isinstance(renderer.mm_processor_cache, MultiModalProcessorSenderCache):
        return None
    return MultiModalProcessorSenderCache(renderer.model_config)


def _touch(cache: Any, hashes: Sequence[str]) -> None:
    for one in hashes:
        cache.touch_sender_cache_item(one)


def _hashes(opened: _Open) -> list[str]:
    return [one for hashes in opened.engine_input["mm_hashes"].values() for one in hashes]


def can_share(engine: Any) -> bool:
    """Whether an ``AsyncLLM`` has the attributes that :class:`EngineInputs` uses.

    A cache of ``mm_processor_cache_type=shm`` evicts an image by counts of its processings and of
    the requests that have read it, and here many requests follow one processing.
    """
    from vllm.multimodal.cache import ShmObjectStoreSenderCache

    renderer = getattr(engine, "renderer", None)
    cache = getattr(renderer, "mm_processor_cache", None)
    return (
        hasattr(engine, "get_supported_tasks")
        and all(
            hasattr(renderer, name)
            for name in ("model_config", "render_cmpl_async", "clear_mm_cache_async")
        )
        and (cache is None or all(hasattr(cache, name) for name in _OF_THE_CACHE))
        and not isinstance(cache, ShmObjectStoreSenderCache)
    )


def _shared_images(prompt: Any) -> PromptImages | None:
    if not isinstance(prompt, Mapping):
        return None
    images = (prompt.get("multi_modal_data") or {}).get("image")
    return images if isinstance(images, PromptImages) else None


def _has_images(prompt: Any) -> bool:
    return isinstance(prompt, Mapping) and bool(
        prompt.get("multi_modal_data") or prompt.get("mm_hashes")
    )


def _rest(tokens: Sequence[int], opened: _Open) -> list[int]:
    """The tokens after the prompt."""
    length = len(opened.collapsed)
    if list(tokens[:length]) != opened.collapsed:
        raise ValueError("a request with the images of a prompt must begin with its tokens")
    return list(tokens[length:])
