"""Qwen2-VL and Qwen2.5-VL micro-batches without an image (veRL 0.9.1 with transformers 5.9).

``verl.models.transformers.qwen2_vl._get_input_embeds`` runs the vision tower on a dummy image so
that FSDP ranks stay in step, and calls ``.mean()`` on what transformers 5 returns as an output
object: "BaseModelOutputWithPooling has no attribute 'mean'". veRL's own padding rows hit it too.
The one function of veRL that is replaced; can go when veRL unpacks that output.
"""

from __future__ import annotations

from typing import Any

import torch
import verl.models.transformers.qwen2_vl as upstream

DUMMY_GRID = (1, 4, 4)
"""Frames, rows and columns of patches of the dummy image."""

upstream_get_input_embeds = upstream._get_input_embeds
"""veRL's own function."""


def apply() -> None:
    """Replace the function, once."""
    upstream._get_input_embeds = get_input_embeds


def get_input_embeds(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    pixel_values: torch.Tensor | None = None,
    pixel_values_videos: torch.Tensor | None = None,
    image_grid_thw: torch.Tensor | None = None,
    video_grid_thw: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Upstream's function with images; else text embeddings plus zero times a dummy image."""
    if pixel_values is not None or pixel_values_videos is not None:
        return upstream_get_input_embeds(
            model,
            input_ids,
            attention_mask,
            pixel_values,
            pixel_values_videos,
            image_grid_thw,
            video_grid_thw,
        )
    embeds = model.get_input_embeddings()(input_ids)
    embeds = embeds + 0.0 * _dummy_image(model, embeds).mean()
    mask = attention_mask.to(embeds.device) if attention_mask is not None else None
    return embeds, mask


def _dummy_image(model: Any, like: torch.Tensor) -> torch.Tensor:
    vision = model.config.vision_config
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    frames, rows, columns = DUMMY_GRID
    pixels = torch.zeros((frames * rows * columns, width), dtype=like.dtype, device=like.device)
    grid = torch.tensor([DUMMY_GRID], dtype=torch.long, device=like.device)
    features, _ = upstream.unpack_visual_output(model.visual(pixels, grid_thw=grid))
    return features
