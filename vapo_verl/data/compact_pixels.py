"""The vision inputs of a prompt's images, at 3 bytes a pixel instead of 24.

Qwen-VL's processor turns each pixel of the resized image into six float32 numbers: three channels
for each of the two frames of a still video. :func:`compact` keeps the three uint8 numbers that they
were computed from. :class:`ModelInputs` recomputes the floats, bit for bit, when a model reads
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

PIXELS = "pixel_values"
_SETTINGS = (
    *("image_mean", "image_std", "rescale_factor"),
    *("patch_size", "temporal_patch_size", "merge_size"),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompactPixels:
    """The patches of a prompt's images, as the processor cut them, before it normalised them."""

    patches: Tensor
    """uint8 [num_patches, channels, patch, patch]"""
    mean: tuple[float, ...]
    """Per channel, in units of the uint8 values."""
    std: tuple[float, ...]
    num_frames: int
    """How often a patch is repeated along time; 2 for Qwen-VL."""
    merge_size: int
    """Blocks of ``merge_size`` x ``merge_size`` patches are adjacent; each is one image token."""

    def to_plain(self) -> dict[str, Any]:
        """Tensors, lists and numbers, for a queue that transfers tensors unchanged."""
        return {
            "patches": self.patches,
            "mean": list(self.mean),
            "std": list(self.std),
            "num_frames": self.num_frames,
            "merge_size": self.merge_size,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> CompactPixels:
        """The inverse of :meth:`to_plain`."""
        return cls(**{**plain, "mean": tuple(plain["mean"]), "std": tuple(plain["std"])})

    def blackened(self, fraction: float, rng: np.random.Generator) -> CompactPixels:
        """A copy in which each patch is black with probability `fraction`."""
        black = torch.from_numpy(rng.random(len(self.patches)) < fraction)
        return replace(self, patches=self.patches.masked_fill(black[:, None, None, None], 0))

    def pixel_values(self, device: str = "cpu") -> Tensor:
        """float32 [num_patches, channels * num_frames * patch * patch], as the processor's.

        On `device`, which receives the uint8 patches: an eighth of the bytes.
        """
        frames = _normalised(self.patches.to(device), self.mean, self.std).unsqueeze(2)
        return frames.expand(-1, -1, self.num_frames, -1, -1).reshape(len(frames), -1)

    def images(self, grid: Tensor) -> list[Tensor]:
        """The resized images, uint8 [height, width, channels] each.

        Args:
            grid: ``image_grid_thw`` [num_images, 3], in patches.
        """
        num_patches = grid.prod(dim=1).tolist()
        pairs = zip(self.patches.split(num_patches), grid.tolist(), strict=True)
        return [self._image(patches, height, width) for patches, (_, height, width) in pairs]

    def _image(self, patches: Tensor, height: int, width: int) -> Tensor:
        """The inverse of the processor's order: blocks of patches, then the patches of a block."""
        merge, (channels, side) = self.merge_size, self.patches.shape[1:3]
        blocks = patches.view(height // merge, width // merge, merge, merge, channels, side, side)
        rows = blocks.permute(0, 2, 5, 1, 3, 6, 4)
        return rows.reshape(height * side, width * side, channels)


def compact(pixel_values: Tensor, image_processor: Any) -> CompactPixels | None:
    """The uint8 pixels from which ``image_processor`` computed ``pixel_values``.

    The result is compared with the original bit by bit: for any other operation of the processor
    (another scale, images that differ between frames) it is None.

    Args:
        pixel_values: float32 [num_patches, channels * temporal_patch * patch * patch].
        image_processor: of Qwen-VL's kind; its ``image_mean``, ``image_std``, ``rescale_factor``,
            ``patch_size``, ``temporal_patch_size`` and ``merge_size`` are read.
    """
    settings: list[Any] = [getattr(image_processor, name, None) for name in _SETTINGS]
    if None in settings or pixel_values.dtype != torch.float32 or pixel_values.ndim != 2:
        return None
    mean, std, scale, side, num_frames, merge_size = settings
    channels = len(mean)
    if pixel_values.size(1) != channels * num_frames * side * side:
        return None
    # the processor's own order of operations: both are float32 products
    mean, std = (tuple((torch.tensor(v) * (1.0 / scale)).tolist()) for v in (mean, std))
    first_frame = pixel_values.view(-1, channels, num_frames, side, side)[:, :, 0]
    values = first_frame * _per_channel(std) + _per_channel(mean)
    found = CompactPixels(
        patches=values.round_().clamp_(0, 255).to(torch.uint8),
        mean=mean,
        std=std,
        num_frames=num_frames,
        merge_size=merge_size,
    )
    return found if torch.equal(found.pixel_values(), pixel_values) else None


class ModelInputs:
    """veRL's ``multi_modal_inputs`` of one prompt; ``pixel_values`` are computed when read.

    It has the part of a mapping that veRL's ``extract_multi_modal_inputs`` uses. Not a ``Mapping``:
    tensordict compares the objects of a batch, and these compare by identity.

    Args:
        device: of the model; the pixels are computed there.
    """

    __slots__ = ("device", "pixels", "plain")

    def __init__(
        self, pixels: CompactPixels | None, plain: Mapping[str, Tensor], device: str = "cpu"
    ) -> None:
        self.pixels, self.plain, self.device = pixels, dict(plain), device

    @classmethod
    def of(cls, inputs: Mapping[str, Tensor], image_processor: Any) -> ModelInputs:
        """From a processor's output; pixels that cannot be made compact stay as they are."""
        found = compact(inputs[PIXELS], image_processor) if PIXELS in inputs else None
        plain = {name: v for name, v in inputs.items() if found is None or name != PIXELS}
        return cls(found, plain)

    def __contains__(self, name: str) -> bool:
        return name in self.plain or (name == PIXELS and self.pixels is not None)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors; the pixels as float32."""
        if self.pixels is not None:
            yield PIXELS, self.pixels.pixel_values(self.device)
        yield from self.plain.items()

    @property
    def num_bytes(self) -> int:
        """Size of the tensors that are transferred."""
        tensors = [*self.plain.values(), *([self.pixels.patches] if self.pixels else [])]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _normalised(patches: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    # tensors, because a GPU divides by a number as it multiplies by its inverse: other bits
    shift, scale = (_per_channel(values).to(patches.device) for values in (mean, std))
    return patches.to(torch.float32).sub_(shift).div_(scale)


def _per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
