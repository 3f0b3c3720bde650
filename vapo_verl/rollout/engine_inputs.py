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

CACHE_KEY = "actor_rollout_ref.rollout.engine_kwargs.vllm.mm_processor_cache_gb"
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

    vLLM sends the pixels of an image to the engine core once. It mirrors that process's LRU cache
    by a cache of the same order on this side. Pixels that were processed here and are not sent yet
    are in this side's cache only. So the first request that needs them carries them, whichever
    prompt they were processed for. Every request touches its images in the order of sending: an
    image in this side's cache is then in the engine core's, too.

    Args:
        renderer: the engine's; its pool of threads processes the images.
    """

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer
        self._open: dict[str, _Open] = {}
        self._opening: set[str] = set()
        """Keys of prompts that are being processed and were not closed."""
        self._unsent: dict[str, Any] = {}
        """Hash -> item that the engine core has not received."""
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
            self._take_back(opened)

    def close(self, key: str) -> None:
        """Forget a prompt, also one that is still being opened; unknown keys are ignored."""
        self._opening.discard(key)
        if (opened := self._open.pop(key, None)) is not None:
            self._take_back(opened)

    def _take_back(self, opened: _Open) -> None:
        """Clear this side's cache if items of the prompt were never sent."""
        if self._unsent.keys() & _hashes(opened):
            self._renderer.clear_mm_cache()
            self._unsent.clear()

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
                opened.engine_input = await self._process(
                    opened.collapsed, opened.images, opened.options
                )
        else:  # the last image evicts the first, or other prompts all of them
            self._take_back(opened)
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
        prompt = {"prompt_token_ids": tokens, "multi_modal_data": {"image": list(images)}}
        if options:
            prompt["mm_processor_kwargs"] = dict(options)
        [engine_input] = await self._renderer.render_cmpl_async([prompt])
        if self._renderer.mm_processor_cache is None:
            return engine_input
        for modality, hashes in engine_input["mm_hashes"].items():
            items = engine_input["mm_kwargs"][modality]
            new = zip(hashes, items, strict=True)
            self._unsent.update((one, item) for one, item in new if item is not None)
        return {**engine_input, "mm_kwargs": None}

    def _items(self, opened: _Open) -> Mapping[str, Any] | None:
        """Touch a request's images; returns its items, None for those that the engine core has.

        Returns None if images left the cache and must be processed again.
        """
        cache = self._renderer.mm_processor_cache
        if cache is None:
            return opened.engine_input["mm_kwargs"]
        if not all(map(cache.is_cached_item, _hashes(opened))):
            return None
        return {
            modality: [
                self._unsent.pop(one, cache.get_and_update_item(None, one)[0]) for one in hashes
            ]
            for modality, hashes in opened.engine_input["mm_hashes"].items()
        }


def _hashes(opened: _Open) -> list[str]:
    return [one for hashes in opened.engine_input["mm_hashes"].values() for one in hashes]


def can_share(engine: Any) -> bool:
    """Whether an ``AsyncLLM`` has the attributes that :class:`EngineInputs` uses."""
    renderer = getattr(engine, "renderer", None)
    cache = getattr(renderer, "mm_processor_cache", None)
    return (
        hasattr(engine, "get_supported_tasks")
        and all(hasattr(renderer, name) for name in ("render_cmpl_async", "clear_mm_cache"))
        and (
            cache is None
            or all(hasattr(cache, name) for name in ("is_cached_item", "get_and_update_item"))
        )
    )


def _shared_images(prompt: Any) -> PromptImages | None:
    if not isinstance(prompt, Mapping):
        return None
    images = (prompt.get("multi_modal_data") or {}).get("image")
    return images if isinstance(images, PromptImages) else None


def _rest(tokens: Sequence[int], opened: _Open) -> list[int]:
    """The tokens after the prompt."""
    length = len(opened.collapsed)
    if list(tokens[:length]) != opened.collapsed:
        raise ValueError("a request with the images of a prompt must begin with its tokens")
    return list(tokens[length:])
