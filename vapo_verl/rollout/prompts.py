"""Prompts whose responses a worker generates: results that all of them share are made once.

veRL's agent loop opens, resizes and processes the images of a prompt for every response, twice. The
responses to a prompt run in one worker, so they reuse here what the first of them made.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

import torch
from tensordict import NonTensorData, NonTensorStack, TensorDict

from vapo_verl.anchors import SampleKey
from vapo_verl.data.compact_pixels import PIXELS, CompactPixels, ModelInputs
from vapo_verl.rollout.transfer import clear, column_values, keys_in, put_row, read_columns

T = TypeVar("T")
PREPARED, SERVER, STORED = "prepared", "server", "stored"
"""Results that responses share: a :class:`PreparedPrompt`, the server that has opened the prompt,
and its row in the replay buffer."""
PROMPTS = "prompts"
"""Partition of the prompts' rows."""
PIXELS_OF = "pixels_of"
"""In a response's ``multi_modal_inputs``: the prompt whose row has the pixels."""
PIXELS_FIELD, GRID_FIELD, MESSAGES_FIELD = "pixels", "image_grid_thw", "raw_prompt"
SECONDS_FIELD = "prepare_s"
MASKED_LOG_PROBS = "masked_log_probs"
"""Field of a response [T]: the actor's log probs on masked images, see :class:`Masking`."""


class Masking(TypedDict):
    """How a second view of a step's images is made; plain, because it travels with a batch."""

    fraction: float
    """Fraction of an image's patches that are black."""
    seed: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPrompt:
    """A prompt as the engine and the actor read it."""

    token_ids: tuple[int, ...]
    media: Mapping[str, Any]
    """veRL's ``multi_modal_data``: lists of images, videos, audios."""
    model_inputs: ModelInputs | None
    """What the actor reads beside tokens; None where veRL has to compute it for each response."""
    seconds: float
    """Wall time of the preparation."""


class OpenPrompt:
    """Results that the responses to one prompt share, each made by the first that asks for it."""

    def __init__(self, uid: str, *, is_shared: bool, is_training: bool = False) -> None:
        self.uid = uid
        self.is_shared = is_shared
        """False for a prompt with one response, which is never closed."""
        self.is_training = is_training
        """Whether the responses are to be trained."""
        self._changed: OpenPrompt | None = None
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    def changed(self) -> OpenPrompt:
        """Shared results of the responses that are generated from changed images."""
        if self._changed is None:
            self._changed = OpenPrompt(f"{self.uid}/changed", is_shared=self.is_shared)
        return self._changed

    def forms(self) -> list[OpenPrompt]:
        """The prompt, and the one with changed images where there is one."""
        return [self, *([self._changed] if self._changed else [])]

    async def once(self, name: str, make: Callable[[], Awaitable[T]]) -> T:
        """The result of the first ``make`` under this name, or its error.

        A cancelled response does not take the result from the others.
        """
        if name not in self._tasks:
            self._tasks[name] = asyncio.ensure_future(make())
        return await asyncio.shield(self._tasks[name])

    def result(self, name: str) -> Any:
        """The result under this name; None for an error and while it is being made."""
        task = self._tasks.get(name)
        if task is None or not task.done() or task.cancelled() or task.exception():
            return None
        return task.result()


def model_inputs_of(inputs: Mapping[str, Any], processor: Any) -> ModelInputs | None:
    """veRL's ``multi_modal_inputs`` from what the processor returned for a prompt's tokens.

    None without images and with videos or audio, which veRL computes for each response.

    Args:
        inputs: the processor's output without ``input_ids``.
    """
    tensors = {name: torch.as_tensor(v) for name, v in inputs.items() if name != "attention_mask"}
    grid = tensors.get("image_grid_thw")
    if grid is None or any("video" in name or "audio" in name for name in tensors):
        return None
    tensors["images_seqlens"] = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0])
    return ModelInputs.of(tensors, processor.image_processor)


@functools.cache
def preparations(most: int) -> asyncio.Semaphore:
    """Semaphore to hold while a prompt is prepared: it limits preparations in this process."""
    return asyncio.Semaphore(most)


_open: dict[str, OpenPrompt] = {}


@contextmanager
def open_prompt(uid: str, *, is_training: bool = False) -> Iterator[OpenPrompt]:
    """Share results between the responses to ``uid`` in this process until the context ends."""
    _open[uid] = OpenPrompt(uid, is_shared=True, is_training=is_training)
    try:
        yield _open[uid]
    finally:
        del _open[uid]


def shared_prompt(uid: str) -> OpenPrompt:
    """The open prompt of this id, or a private one."""
    return _open.get(uid) or OpenPrompt(uid, is_shared=False)


async def store_prompt(prompt: OpenPrompt, messages: Sequence[Mapping[str, Any]]) -> None:
    """Write the prompt's row to the replay buffer.

    Args:
        messages: with images as the data set has them; kept where there are no compact pixels.
    """
    prepared: PreparedPrompt = prompt.result(PREPARED)
    inputs = prepared.model_inputs
    pixels = inputs.pixels if inputs else None
    row = {
        PIXELS_FIELD: pixels and pixels.to_plain(),
        GRID_FIELD: inputs.plain["image_grid_thw"] if inputs and pixels else None,
        MESSAGES_FIELD: None if pixels else list(messages),
        SECONDS_FIELD: prepared.seconds,
    }
    await put_row(prompt.uid, PROMPTS, row)


def image_parts(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The image parts of a prompt in veRL's form."""
    return [
        part
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part.get("type") == "image"
    ]


def stored_images(uids: Sequence[str]) -> dict[str, list[Any]]:
    """Images of prompts by uid: as the model sees them, or as the data set has them.

    Returns:
        Arrays uint8 [height, width, 3], or image parts of messages in veRL's form.
    """
    fields = [PIXELS_FIELD, GRID_FIELD, MESSAGES_FIELD]
    columns = read_columns(uids, PROMPTS, fields)
    return {
        uid: image_parts(messages)
        if pixels is None
        else [image.numpy() for image in CompactPixels.from_plain(pixels).images(grid)]
        for uid, pixels, grid, messages in zip(uids, *columns.values(), strict=True)
    }


def prompt_uid(step: int, place: int) -> str:
    """Names a prompt by its step and its place in the step's batch."""
    return f"{step:06d}-{place:05d}"


def uid_of(key: str) -> str:
    """The uid of a response's prompt, from its key ``{uid}_{sample}_{output}``."""
    return key.rsplit("_", 2)[0]


def clear_prompts_except(uids: Collection[str]) -> None:
    """Remove the rows of all prompts but these."""
    clear([uid for uid in keys_in(PROMPTS) if uid not in uids], PROMPTS)


def prepare_seconds(uids: Sequence[str]) -> list[float]:
    """``PreparedPrompt.seconds`` of prompts with finished responses.

    Rows of other prompts may be half written: TransferQueue lists a key before its fields.
    """
    return read_columns(uids, PROMPTS, [SECONDS_FIELD])[SECONDS_FIELD] if uids else []


def without_images(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with their image parts empty."""
    return [
        message
        if isinstance(message["content"], str)
        else {
            **message,
            "content": [
                {"type": "image"} if part.get("type") == "image" else part
                for part in message["content"]
            ],
        }
        for message in map(dict, messages)
    ]


class PromptPixels:
    """Pixels of the prompts that a rank trains on in a step, fetched once for all its passes.

    Args:
        device: of the models, which compute floats from them.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._held: dict[str, CompactPixels] = {}

    def of(self, uids: Sequence[str]) -> dict[str, CompactPixels]:
        """By uid. Prompts none of which is known begin another step: the others are forgotten."""
        missing = [uid for uid in uids if uid not in self._held]
        if len(missing) == len(uids):
            self._held.clear()
        if missing:
            [stored] = read_columns(missing, PROMPTS, [PIXELS_FIELD]).values()
            self._held.update(zip(missing, map(CompactPixels.from_plain, stored), strict=True))
        return {uid: self._held[uid] for uid in uids}

    def join(self, data: TensorDict, masking: Masking | None = None) -> TensorDict:
        """Responses with the pixels of their prompts, which become floats when a model reads them.

        Args:
            masking: mask the images, in the same way for all responses to a prompt.

        Raises:
            ValueError: videos, and images of an unknown processor, cannot be masked.
        """
        column = data.get("multi_modal_inputs", None)
        if column is None:
            return data
        values = column_values(column)
        if masking and any(PIXELS in name for inputs in values for name in inputs):
            raise ValueError(
                "vapo.method masks images, and these cannot be: they are of a video, or of a "
                "processor that is not of Qwen-VL's kind; leave the rows out, or set "
                "vapo.method.name=none"
            )
        uids = list(dict.fromkeys(inputs[PIXELS_OF] for inputs in values if PIXELS_OF in inputs))
        if not uids:
            return data
        pixels = self.of(uids)
        if masking:
            pixels = {uid: _masked(uid, one, masking) for uid, one in pixels.items()}
        data["multi_modal_inputs"] = NonTensorStack.from_list(
            [NonTensorData(self._model_inputs(inputs, pixels)) for inputs in values]
        )
        return data

    def _model_inputs(
        self, inputs: Mapping[str, Any], pixels: Mapping[str, CompactPixels]
    ) -> Mapping[str, Any] | ModelInputs:
        if PIXELS_OF not in inputs:
            return inputs
        plain = {name: value for name, value in inputs.items() if name != PIXELS_OF}
        return ModelInputs(pixels[inputs[PIXELS_OF]], plain, self._device)


def _masked(uid: str, pixels: CompactPixels, masking: Masking) -> CompactPixels:
    key = SampleKey(seed=masking["seed"], step=masking["step"], prompt_uid=uid, sample=0)
    return pixels.blackened(masking["fraction"], key.group_generator("masking"))
