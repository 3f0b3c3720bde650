"""A model's size, shape and vision tokens, without loading weights.

The shape has the exact tensor sizes of a Qwen2.5-VL model, and the units that FSDP gathers. It is
read from config.json, and for the two models of the recipes from a table: a recipe can be checked
before its model is downloaded.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vapo_verl.data import control_tokens
from vapo_verl.lora import Lora, lora_of

BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1}
NAME_FACTOR = 1.2
"""A name counts the decoder's parameters; the vision tower and the embeddings add to that."""
DTYPE_BYTES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Parameters of a model."""

    num_parameters: float
    source: str
    """The source of the number, for messages."""

    def __str__(self) -> str:
        return f"{self.num_parameters / 1e6:,.1f} million parameters ({self.source})"


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionTokenGeometry:
    """Conversion of pixels to image tokens."""

    pixels_per_token: int
    """(patch_size * merge_size)^2: 28^2 for Qwen2-VL and Qwen2.5-VL, 32^2 for Qwen3-VL."""
    max_pixels: int | None
    """The processor's limit if no setting overrides it."""


def model_folder(config: DictConfig) -> Path | None:
    """The folder of the run's model: a path, or a hub name that is in the local cache."""
    return control_tokens.model_folder(config.actor_rollout_ref.model.path)


def model_size(config: DictConfig) -> ModelSize | None:
    """Parameters from the safetensors headers, else the shape, else the name; None: unknown."""
    folder, name = model_folder(config), config.actor_rollout_ref.model.path
    files = sorted(folder.glob("*.safetensors")) if folder else []
    if files:
        number = sum(_parameters_in(file) for file in files)
        return ModelSize(num_parameters=number, source="its safetensors files")
    shape = shape_from_folder(folder) if folder else KNOWN_SHAPES.get(name)
    if shape is not None:
        source = "its config.json" if folder else "its published shape"
        return ModelSize(num_parameters=shape.num_parameters, source=source)
    match = re.search(r"(\d+(?:\.\d+)?)b\b", name.lower())
    if not match:
        return None
    return ModelSize(num_parameters=float(match[1]) * 1e9 * NAME_FACTOR, source="by its name")


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
    head_dim: int | None = None
    """Width of an attention head, if not hidden_size / num_attention_heads."""
    num_experts: int = 0
    """Of a layer; 0: it has one MLP."""
    moe_intermediate_size: int = 0
    vision_hidden_size: int = 1280
    vision_depth: int = 32
    vision_intermediate_size: int = 3420
    vision_patch_elements: int = 3 * 2 * 14 * 14
    """Channels * frames * height * width of a patch."""
    patches_per_token: int = 4
    """spatial_merge_size^2: vision patches that become one image token."""

    @property
    def _head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def query_size(self) -> int:
        """Width of all query heads."""
        return self._head_size * self.num_attention_heads

    @property
    def key_value_size(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self._head_size * self.num_key_value_heads

    @property
    def _mlp_size(self) -> int:
        """Width of a layer's MLP, or of all its experts."""
        return self.num_experts * self.moe_intermediate_size or self.intermediate_size

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

    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of the linear layers of a decoder layer, by name."""
        hidden, key_value, inner = self.hidden_size, self.key_value_size, self.intermediate_size
        query = self.query_size
        sizes = {"self_attn.q_proj": (query, hidden), "self_attn.o_proj": (hidden, query)}
        sizes |= {f"self_attn.{part}_proj": (key_value, hidden) for part in "kv"}
        sizes |= {f"mlp.{part}_proj": (inner, hidden) for part in ("gate", "up")}
        return {**sizes, "mlp.down_proj": (hidden, inner)}

    def adapter_parameters(self, lora: Lora, rank: int) -> int:
        """Of adapters of that rank: r * (in + out) for each layer that has one."""
        sizes, numbers = self.linear_layers(), lora.num_adapted(self.num_hidden_layers)
        return sum(number * rank * sum(sizes[name]) for name, number in numbers.items())

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
        hidden, query, key_value = self.hidden_size, self.query_size, self.key_value_size
        yield TensorKind(number=2 * number, rows=query, columns=hidden)  # query, output
        yield TensorKind(number=number, rows=query)  # bias of the query
        yield TensorKind(number=2 * number, rows=key_value, columns=hidden)
        yield TensorKind(number=2 * number, rows=key_value)
        inner = self._mlp_size
        if self.num_experts:
            yield TensorKind(number=number, rows=self.num_experts, columns=hidden)  # router
            yield TensorKind(number=number, rows=2 * inner, columns=hidden)  # gate and up
            yield TensorKind(number=number, rows=inner, columns=hidden)
        else:
            yield TensorKind(number=3 * number, rows=inner, columns=hidden)
        yield TensorKind(number=2 * number, rows=hidden)  # norms

    def engine_tensors(self) -> Iterator[TensorKind]:
        """Large tensors of vLLM's model, which joins query, key and value, and gate and up."""
        number, hidden, inner = self.num_hidden_layers, self.hidden_size, self._mlp_size
        yield TensorKind(
            number=1 if self.tie_word_embeddings else 2, rows=self.vocab_size, columns=hidden
        )
        joined = self.query_size + 2 * self.key_value_size
        yield TensorKind(number=number, rows=joined, columns=hidden)
        yield TensorKind(number=number, rows=self.query_size, columns=hidden)
        yield TensorKind(number=number, rows=2 * inner, columns=hidden)
        yield TensorKind(number=number, rows=inner, columns=hidden)
        vision, wide = self.vision_hidden_size, self.vision_intermediate_size
        yield TensorKind(number=self.vision_depth, rows=3 * vision, columns=vision)
        yield TensorKind(number=self.vision_depth, rows=vision, columns=vision)
        yield TensorKind(number=self.vision_depth, rows=2 * wide, columns=vision)
        yield TensorKind(number=self.vision_depth, rows=wide, columns=vision)
        yield from self._merger()

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


def model_shape(config: DictConfig) -> ModelShape | None:
    """The shape from config.json, else from the table, else of the known model nearest in size.

    None if the model's size is unknown.
    """
    folder = model_folder(config)
    shape = shape_from_folder(folder) if folder else None
    shape = shape or KNOWN_SHAPES.get(config.actor_rollout_ref.model.path)
    if shape is not None:
        return shape
    size = model_size(config)
    return nearest_shape(size.num_parameters) if size else None


def _parameters_in(file: Path) -> int:
    """Elements of all tensors, from the header: 8 bytes of length, then JSON."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    return sum(
        (entry["data_offsets"][1] - entry["data_offsets"][0]) // BYTES.get(entry["dtype"], 2)
        for entry in header.values()
    )


def vision_tokens(folder: Path | None) -> VisionTokenGeometry:
    """Read the processor's file; Qwen2.5-VL's values if there is none."""
    settings = control_tokens.image_processor_settings(folder)
    values = next((stated for stated in settings if "patch_size" in stated), {})
    patch, merge = values.get("patch_size", 14), values.get("merge_size", 2)
    limit = values.get("max_pixels") or (values.get("size") or {}).get("longest_edge")
    return VisionTokenGeometry(pixels_per_token=(patch * merge) ** 2, max_pixels=limit)


def dtype_bytes(name: object) -> int:
    """Bytes of an element; 4, the larger guess, for an unknown name (auto, half, ...)."""
    return DTYPE_BYTES.get(str(name), 4)


def parameter_bytes(config: DictConfig) -> int:
    """b of the formulas: a parameter as FSDP holds it; gradient and moments have its type."""
    return dtype_bytes(config.actor_rollout_ref.actor.fsdp_config.model_dtype)


def trained_parameters(config: DictConfig, num_parameters: float) -> float:
    """Parameters that have gradients: those of LoRA's adapters, or all of the model's.

    Args:
        num_parameters: of the model.
    """
    lora = lora_of(config)
    shape = model_shape(config) or nearest_shape(num_parameters)
    return float(shape.adapter_parameters(lora, lora.rank)) if lora else num_parameters


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
    "Qwen/Qwen2.5-VL-32B-Instruct": ModelShape(
        hidden_size=5120,
        num_hidden_layers=64,
        num_attention_heads=40,
        num_key_value_heads=8,
        intermediate_size=27648,
        vocab_size=152064,
        tie_word_embeddings=False,
        vision_intermediate_size=3456,
    ),
    "Qwen/Qwen2.5-VL-72B-Instruct": ModelShape(
        hidden_size=8192,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        intermediate_size=29568,
        vocab_size=152064,
        tie_word_embeddings=False,
        vision_intermediate_size=3456,
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
        head_dim=text.get("head_dim"),
        num_experts=text.get("num_experts") or 0,
        moe_intermediate_size=text.get("moe_intermediate_size") or 0,
        vision_hidden_size=vision.get("hidden_size", 1280),
        vision_depth=vision.get("depth", 32),
        vision_intermediate_size=vision.get("intermediate_size", 3420),
        vision_patch_elements=channels * vision.get("temporal_patch_size", 2) * patch**2,
        patches_per_token=merge**2,
    )


def nearest_shape(num_parameters: float) -> ModelShape:
    """The known model nearest in size, as an approximation if only the size is known."""
    return min(KNOWN_SHAPES.values(), key=lambda shape: abs(shape.num_parameters - num_parameters))
