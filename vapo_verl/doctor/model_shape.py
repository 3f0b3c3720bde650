"""The shape of a Qwen2.5-VL model: exact tensor sizes, and the units that FSDP gathers.

Shapes come from the model's config.json, and for the two models of the recipes from a table, so
that a recipe can be checked before its model is downloaded.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorKind:
    """Tensors of a model with the same shape."""

    number: int
    rows: int
    columns: int = 1

    @property
    def elements(self) -> int:
        """Elements of one of them."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a Qwen2.5-VL model, named as in its config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool
    vision_hidden_size: int = 1280
    vision_depth: int = 32
    vision_intermediate_size: int = 3420
    vision_patch_elements: int = 3 * 2 * 14 * 14
    """Channels * frames * height * width of a patch."""
    patches_per_token: int = 4
    """spatial_merge_size^2: vision patches that become one image token."""

    @property
    def key_value_size(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.hidden_size // self.num_attention_heads * self.num_key_value_heads

    @property
    def num_parameters(self) -> int:
        return sum(kind.number * kind.elements for kind in self.tensors())

    @property
    def layer_parameters(self) -> int:
        """Of one decoder layer, which FSDP gathers as one unit."""
        return sum(kind.number * kind.elements for kind in self._layer(1))

    @property
    def embedding_parameters(self) -> int:
        """Of the token embedding, and of the output layer if the two are not tied."""
        return self.vocab_size * self.hidden_size

    @property
    def root_parameters(self) -> int:
        """Parameters that FSDP gathers with the root and keeps until the step's end.

        Tied embeddings are not a separate unit (`_select_fsdp2_wrap_targets` in veRL 0.9.1).
        """
        rest = sum(kind.number * kind.elements for kind in (*self._merger(), *self._patches()))
        return rest + (self.embedding_parameters if self.tie_word_embeddings else 0)

    def tensors(self) -> Iterator[TensorKind]:
        """All parameters of transformers' `Qwen2_5_VLForConditionalGeneration`."""
        yield TensorKind(
            number=1 if self.tie_word_embeddings else 2,
            rows=self.vocab_size,
            columns=self.hidden_size,
        )
        yield from self._layer(self.num_hidden_layers)
        yield TensorKind(number=1, rows=self.hidden_size)
        yield from self._patches()
        yield from self._vision_block(self.vision_depth)
        yield from self._merger()

    def _layer(self, number: int) -> Iterator[TensorKind]:
        hidden, key_value = self.hidden_size, self.key_value_size
        yield TensorKind(number=2 * number, rows=hidden, columns=hidden)  # query, output
        yield TensorKind(number=number, rows=hidden)  # bias of the query
        yield TensorKind(number=2 * number, rows=key_value, columns=hidden)
        yield TensorKind(number=2 * number, rows=key_value)
        yield TensorKind(number=3 * number, rows=self.intermediate_size, columns=hidden)
        yield TensorKind(number=2 * number, rows=hidden)  # norms

    def _patches(self) -> Iterator[TensorKind]:
        yield TensorKind(number=1, rows=self.vision_hidden_size, columns=self.vision_patch_elements)

    def _vision_block(self, number: int) -> Iterator[TensorKind]:
        hidden, inner = self.vision_hidden_size, self.vision_intermediate_size
        yield TensorKind(number=number, rows=3 * hidden, columns=hidden)
        yield TensorKind(number=number, rows=3 * hidden)
        yield TensorKind(number=number, rows=hidden, columns=hidden)
        yield TensorKind(number=3 * number, rows=inner, columns=hidden)
        yield TensorKind(number=2 * number, rows=inner)
        yield TensorKind(number=4 * number, rows=hidden)  # two norms, two biases

    def _merger(self) -> Iterator[TensorKind]:
        merged = self.vision_hidden_size * self.patches_per_token
        yield TensorKind(number=1, rows=self.vision_hidden_size)
        yield TensorKind(number=1, rows=merged, columns=merged)
        yield TensorKind(number=1, rows=merged)
        yield TensorKind(number=1, rows=self.hidden_size, columns=merged)
        yield TensorKind(number=1, rows=self.hidden_size)


KNOWN_SHAPES: Mapping[str, ModelShape] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": ModelShape(
        hidden_size=2048,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        intermediate_size=11008,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": ModelShape(
        hidden_size=3584,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        intermediate_size=18944,
        vocab_size=152064,
        tie_word_embeddings=False,
    ),
}
"""By hub name, as in the config.json of each."""


def shape_from_folder(folder: Path) -> ModelShape | None:
    """Read a folder's config.json; None if it has none or one of another kind."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    values: dict[str, Any] = json.loads(file.read_text())
    text, vision = {**values, **(values.get("text_config") or {})}, values.get("vision_config")
    if not vision or "hidden_size" not in text:
        return None
    merge, patch = vision.get("spatial_merge_size", 2), vision.get("patch_size", 14)
    channels = vision.get("in_channels") or vision.get("in_chans") or 3
    return ModelShape(
        hidden_size=text["hidden_size"],
        num_hidden_layers=text["num_hidden_layers"],
        num_attention_heads=text["num_attention_heads"],
        num_key_value_heads=text["num_key_value_heads"],
        intermediate_size=text["intermediate_size"],
        vocab_size=text["vocab_size"],
        tie_word_embeddings=values.get("tie_word_embeddings", False),
        vision_hidden_size=vision.get("hidden_size", 1280),
        vision_depth=vision.get("depth", 32),
        vision_intermediate_size=vision.get("intermediate_size", 3420),
        vision_patch_elements=channels * vision.get("temporal_patch_size", 2) * patch**2,
        patches_per_token=merge**2,
    )


def nearest_shape(num_parameters: float) -> ModelShape:
    """The known model nearest in size, as an approximation if only the size is known."""
    return min(KNOWN_SHAPES.values(), key=lambda shape: abs(shape.num_parameters - num_parameters))
