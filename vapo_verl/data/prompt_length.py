"""The length of a prompt with images, from their headers: no pixel is decoded.

The number of an image's tokens follows from its size alone. The size in its header goes through the
code that resizes the image in a rollout (qwen_vl_utils under the limits of the data, then the
processor under its own), with :class:`Frame` in place of the pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image
from transformers import Qwen2_5_VLProcessor, Qwen2VLProcessor, Qwen3VLProcessor

from vapo_verl.data.cells import chat_parts
from vapo_verl.data.control_tokens import ControlTokens
from vapo_verl.data.images import (
    StoredImage,
    image_options,
    image_source,
    is_remote,
    load_image,
    read_header,
    resized,
)


class NotFromHeaders(ValueError):
    """Headers do not give the prompt's length; only the processor does."""


class Frame(Image.Image):
    """An image without pixels: only its size is known, and it can be resized."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self._frame = size

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self._frame

    @property
    def mode(self) -> str:
        return "RGB"

    def convert(self, *_: Any, **__: Any) -> Frame:
        return self

    def resize(self, size: Any, *_: Any, **__: Any) -> Frame:
        """Like Pillow's, which refuses an empty image."""
        width, height = size
        if width <= 0 or height <= 0:
            raise ValueError(f"an image of {width} x {height} pixels is empty")
        return Frame((width, height))


def is_supported(processor: Any) -> bool:
    """Whether :func:`num_prompt_tokens` can compute this processor's image tokens from sizes."""
    return type(processor) in (Qwen2VLProcessor, Qwen2_5_VLProcessor, Qwen3VLProcessor)


def put_frames(messages: Sequence[dict[str, Any]]) -> None:
    """Replace the images of veRL's messages by frames of their size, in place.

    Raises:
        NotFromHeaders: an image is at an address, or its header does not tell its size for sure.
        OSError, SyntaxError, ValueError: Pillow finds no image.
    """
    for message in messages:
        content = message["content"]
        for item in content if isinstance(content, list) else ():
            if "image_url" in item:
                raise NotFromHeaders("an image is given as image_url")
            if item["type"] == "image":
                item["image"] = Frame(_stated_size(item["image"]))


def _stated_size(image: StoredImage | Image.Image) -> tuple[int, int]:
    """The size of the decoded, upright image."""
    if not isinstance(image, StoredImage):
        return image.size
    if is_remote(image.source):
        raise NotFromHeaders(f"{image.source[:80]!r} is an address")
    header = read_header(image.source)
    if not header.has_exact_size:
        raise NotFromHeaders(f"the header of this {header.format} image may not state its size")
    return header.width, header.height


def num_prompt_tokens(processor: Any, text: str, images: Sequence[Image.Image] | None) -> int:
    """Tokens of a rendered chat in which every image is one placeholder in ``text``.

    Args:
        processor: one that :func:`is_supported`.
        images: in a rollout's size, before the processor resizes them; frames suffice.

    Raises:
        NotFromHeaders: ``text`` does not have one placeholder for each image.
        ValueError: an image is more than 200 times as long as it is wide.
    """
    tokenizer = processor.tokenizer
    if images is None:  # veRL asks the tokenizer, without special tokens
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])
    if text.count(processor.image_token) != len(images):
        raise NotFromHeaders(f"{processor.image_token} is not there once for each image")
    cutter = processor.image_processor
    num_patches = [cutter.get_number_of_image_patches(i.height, i.width, {}) for i in images]
    num_image_tokens = sum(num // cutter.merge_size**2 for num in num_patches)
    return len(tokenizer(text)["input_ids"]) - len(images) + num_image_tokens


class PromptMeter:
    """Prompt lengths before a run, without veRL, as from `VapoDataset.prompt_length`.

    Args:
        processor: one that :func:`is_supported`.
        template_options: `data.apply_chat_template_kwargs`.
        limits: `min_pixels` and `max_pixels` of the data; None is the model's own.
        controls: words to escape (`vapo.data.control_tokens=text`).
    """

    def __init__(
        self,
        processor: Any,
        *,
        template_options: Mapping[str, Any],
        limits: Mapping[str, int | None],
        controls: ControlTokens | None = None,
    ) -> None:
        self._processor, self._options = processor, template_options
        self._limits, self._controls = limits, controls

    def num_tokens(self, prompt: Sequence[Mapping[str, str]], images: Sequence[Any]) -> int:
        """Tokens of a prompt that passed the checks of a row.

        Raises:
            NotFromHeaders: an image is at an address.
            BadCell, OSError, SyntaxError, ValueError: an image cannot be read or resized.
        """
        hide = self._controls.hide if self._controls is not None else str
        messages = [
            {"role": turn["role"], "content": chat_parts(hide(turn["content"]))} for turn in prompt
        ]
        text = self._processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, **self._options
        )
        frames = [self._frame(entry) for entry in images]
        return num_prompt_tokens(self._processor, text, frames or None)

    def _frame(self, entry: Any) -> Image.Image:
        try:
            size = _stated_size(StoredImage(entry))
        except NotFromHeaders:
            if is_remote(image_source(entry)):
                raise
            size = load_image(entry).size
        patch_size = self._processor.image_processor.patch_size
        options = image_options(entry, self._limits)
        return resized(Frame(size), patch_size=patch_size, **options)


def long_rows(
    rows: Iterable[Mapping[str, Any]], meter: PromptMeter, max_length: int
) -> Iterator[int]:
    """The length of each row's prompt where it is over `max_length`, else 0.

    Rows of unknown length count as fitting.
    """
    for row in rows:
        try:
            length = meter.num_tokens(row["prompt"], row["images"] or ())
        except NotFromHeaders:
            length = 0
        yield length if length > max_length else 0
