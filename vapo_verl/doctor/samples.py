"""Prompts of a few real rows: image tokens against image features, lengths against the limit.

An image of a grid (t, h, w) of patches gives t * h * w / merge_size^2 features, and the prompt
must hold as many image tokens: a model stops with "image features and image tokens do not match".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vapo_verl.doctor.findings import Finding, error, ok, warning

CHECK = "rows"
OVERLONG_SHARE = 0.05
"""Above this share of rows left out, the data are no longer those that were meant."""
SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSample:
    """One row, as the rollout would see it."""

    row: int
    num_tokens: int
    image_tokens: int
    """Image tokens in the expanded prompt."""
    image_features: int
    """Features the images' grids give."""
    images_in_row: int
    images_in_prompt: int


def measure(
    row: int, messages: Sequence[dict[str, Any]], images: Sequence[Any], **parts: Any
) -> PromptSample:
    """Expand one prompt. ``parts``: processor, num_images, template_options, processor_options."""
    processor = parts["processor"]
    text = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False, **parts["template_options"]
    )
    inputs = processor(
        text=[text], images=images or None, return_tensors="pt", **parts["processor_options"]
    )
    ids, grid = inputs["input_ids"][0], inputs.get("image_grid_thw")
    merged = processor.image_processor.merge_size**2
    return PromptSample(
        row=row,
        num_tokens=len(ids),
        image_tokens=int((ids == processor.image_token_id).sum()),
        image_features=0 if grid is None else int(grid.prod(-1).sum()) // merged,
        images_in_row=parts["num_images"],
        images_in_prompt=sum(
            item.get("type") == "image"
            for message in messages
            if not isinstance(message["content"], str)
            for item in message["content"]
        ),
    )


def judge_samples(
    samples: Sequence[PromptSample], *, max_prompt_length: int, filtered: bool
) -> Iterator[Finding]:
    """What a sample of a file says; ``filtered``: overlong rows are left out, not an error."""
    bad = [s for s in samples if s.image_tokens != s.image_features]
    for sample in bad[:SHOWN]:
        yield error(
            CHECK,
            f"row {sample.row}: {sample.image_tokens} image tokens in the prompt, but "
            f"{sample.image_features} image features",
            "the processor's patch_size and merge_size must be the model's, and its chat template "
            "must write one image placeholder an image",
        )
    unused = [s for s in samples if s.images_in_row != s.images_in_prompt]
    for sample in unused[:SHOWN]:
        yield error(
            CHECK,
            f"row {sample.row}: {sample.images_in_row} images, but {sample.images_in_prompt} "
            "<image> in its prompt",
            "write <image> once for each image: see docs/data.md",
        )
    yield from _lengths(samples, max_prompt_length, filtered)
    if samples and not bad and not unused:
        tokens = [s.image_tokens for s in samples]
        found = f"{len(samples)} rows: image tokens match, {min(tokens)} to {max(tokens)} a prompt"
        yield ok(CHECK, found)


def _lengths(samples: Sequence[PromptSample], limit: int, filtered: bool) -> Iterator[Finding]:
    if not samples:
        return
    longest = max(s.num_tokens for s in samples)
    over = [s for s in samples if s.num_tokens > limit]
    share = len(over) / len(samples)
    found = (
        f"{len(over)} of {len(samples)} prompts ({share:.0%}) are over "
        f"data.max_prompt_length={limit}, the longest has {longest} tokens"
    )
    fix = "raise data.max_prompt_length and rollout.max_model_len, or lower data.max_pixels"
    if not over:
        yield ok(CHECK, found)
    elif not filtered:
        yield error(CHECK, found, f"{fix}, or data.filter_overlong_prompts=true")
    elif share > OVERLONG_SHARE:
        yield warning(CHECK, f"{found}: they are left out", fix)
    else:
        yield ok(CHECK, f"{found}: they are left out")
