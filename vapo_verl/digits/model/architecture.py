"""Shape of the small model, Qwen2.5-VL except for its sizes, and the training of its tower."""

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoProcessor,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from vapo_verl.digits.model.samples import encode
from vapo_verl.digits.scene import (
    CELL_PIXELS,
    COLORS,
    ScanPool,
    Scene,
    parse_grid,
    render_pixels,
    sample_scene,
)

_WIDTH = 128
_MAX_CELLS = 64
_NUM_NEAR, _NEARNESS = 4, 2.0
_ROWS = ("top", "middle", "bottom")
_COLUMNS = ("left", "center", "right")
_DIGITS = tuple(map(str, range(10)))
_WORDS = {
    "digit": tuple(f" {digit}" for digit in _DIGITS),
    "digit in arithmetic": _DIGITS,
    "color": tuple(f" {color}" for color in COLORS),
    "row": tuple(f" {row}" for row in _ROWS),
    "row of the first sentence": _ROWS,
    "column": tuple(f" {column}" for column in _COLUMNS),
}
"""Groups of tokens, of which exactly one in each describes a cell."""


def model_config(tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLConfig:
    """Return the configuration of about 2 million parameters that goes with a tokenizer.

    The vocabulary is exactly the tokenizer's: a padded one would give probability to ids that an
    engine masks, and rollout and actor logprobs would then differ by a constant.
    """
    return qwen_config(tokenizer, _text_config(tokenizer), _vision_config())


def qwen_config(
    tokenizer: PreTrainedTokenizerBase, text: dict[str, Any], vision: dict[str, Any]
) -> Qwen2_5_VLConfig:
    """Join the two halves' sizes, with the tokenizer's ids for vision tokens, end and padding."""
    ids = tokenizer.convert_tokens_to_ids
    of_tokens = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return Qwen2_5_VLConfig(
        text_config={**text, **of_tokens},
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=text["tie_word_embeddings"],
        architectures=["Qwen2_5_VLForConditionalGeneration"],
    )


def _text_config(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    # head_dim is 32, the minimum of vLLM's CPU attention. The rotary base leaves half of the
    # frequencies nearly still over a hundred tokens: looking up a cell by its content needs them.
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4}
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": _WIDTH,
        "intermediate_size": 4 * _WIDTH,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": _WIDTH**-0.5,
        "rope_parameters": rope,
        "tie_word_embeddings": True,
    }


def _vision_config() -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_heads": 4,
        "out_hidden_size": _WIDTH,
        "patch_size": CELL_PIXELS // 2,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [0, 1],
    }


def build_model(tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLForConditionalGeneration:
    """Build the untrained model in float32; seed torch first."""
    model = Qwen2_5_VLForConditionalGeneration(model_config(tokenizer))
    _match_attention(model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


@torch.no_grad()
def _match_attention(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Initialise every attention head as a look-up that copies similar or near tokens.

    Query weights equal key weights, and output weights are the transpose of value weights. Biases
    on the fastest rotary frequencies make the last group of heads prefer near tokens. Reading a
    cell takes both: the position in the last words, then the cell that matches it.
    """
    text = model.config.text_config
    shape = (text.num_key_value_heads, -1, text.hidden_size)
    group = text.num_attention_heads // text.num_key_value_heads
    head_dim = text.hidden_size // text.num_attention_heads
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        keys, values = attention.k_proj.weight.view(shape), attention.v_proj.weight.view(shape)
        attention.q_proj.weight.copy_(keys.repeat_interleave(group, dim=0).flatten(0, 1))
        attention.o_proj.weight.copy_(
            values.repeat_interleave(group, dim=0).flatten(0, 1).T / group
        )
        attention.k_proj.bias.view(-1, head_dim)[-1:, :_NUM_NEAR] = _NEARNESS
        attention.q_proj.bias.view(-1, head_dim)[-group:, :_NUM_NEAR] = _NEARNESS


def build_processor(
    tokenizer: PreTrainedTokenizerBase, max_cells: int = _MAX_CELLS
) -> Qwen2_5_VLProcessor:
    """Build the processor; images from one cell up to `max_cells` cells keep their size.

    A cell is 28 x 28 pixels and becomes one image token: 2 x 2 merged patches of 14 x 14.
    """
    pixels = {"min_pixels": CELL_PIXELS**2, "max_pixels": max_cells * CELL_PIXELS**2}
    patches = {"patch_size": CELL_PIXELS // 2, "merge_size": 2, "temporal_patch_size": 2}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches, **pixels),
        video_processor=Qwen2VLVideoProcessor(**patches, **pixels),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )


def save_model(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, folder: Path
) -> None:
    """Write all files for loading, with weights rounded to bfloat16; the model is unchanged."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def load_model(folder: Path) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """Load model and processor for evaluation, in float32."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def write_json(path: Path, data: object) -> None:
    """Write indented JSON that ends with a newline."""
    path.write_text(json.dumps(data, indent=2) + "\n")


# Stage 1: train the vision tower to describe each merged token by digit, colour and position.
#
# Joint training from scratch stays at chance, as vision and text each need the other first. A
# merged token is described by its dot products with the (tied) embeddings of the words themselves,
# so that vision and vocabulary share a space, and mainly the look-up of cells remains to be learnt.


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerConfig:
    """Training settings of the tower."""

    steps: int = 400
    grids: tuple[str, ...] = ("2x2", "2x3", "3x3")
    """Taken in turn."""
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    seed: int = 0


def train_tower(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    pool: ScanPool,
    config: TowerConfig,
) -> Iterator[float]:
    """Train the model's tower and word embeddings in place and yield every step's loss."""
    embeddings = model.get_input_embeddings()
    optimizer = torch.optim.AdamW(
        [*model.model.visual.parameters(), *embeddings.parameters()],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps + 1, pct_start=0.1
    )
    for step in range(config.steps):
        rng = random.Random(f"tower/{config.seed}/{step}")
        scenes = draw_scenes(rng, pool, config.grids[step % len(config.grids)], config.batch_size)
        scores = describe(model, processor, scenes, rng)
        labels = cell_labels(scenes)
        loss = torch.stack([cross_entropy(scores[name], labels[name]) for name in _WORDS]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield loss.item()


def draw_scenes(rng: random.Random, pool: ScanPool, grid: str, number: int) -> list[Scene]:
    """Draw scenes of one grid shape."""
    return [sample_scene(rng, pool, *parse_grid(grid)) for _ in range(number)]


def describe(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    scenes: list[Scene],
    rng: random.Random,
) -> dict[str, Float[Tensor, "cells words"]]:
    """Render the scenes and return each merged token's dot products with the groups of words."""
    images = [render_pixels(scene, rng) for scene in scenes]
    inputs = processor.image_processor(images, return_tensors="pt")
    visual, embeddings = model.model.visual, model.get_input_embeddings()
    features = visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
    scores = {}
    for name, words in _WORDS.items():
        tokens = torch.tensor([encode(processor.tokenizer, word)[0] for word in words])
        scores[name] = features @ embeddings(tokens).T
    return scores


def cell_labels(scenes: list[Scene]) -> dict[str, Tensor]:
    """Return class numbers of every cell, by group of words."""
    positions = [position.split() for scene in scenes for position in scene.positions]
    cells = [cell for scene in scenes for cell in scene.cells]
    digits = [cell.digit for cell in cells]
    rows = [_ROWS.index(row) for row, _ in positions]
    labels = {
        "digit": digits,
        "digit in arithmetic": digits,
        "color": [COLORS.index(cell.color) for cell in cells],
        "row": rows,
        "row of the first sentence": rows,
        "column": [_COLUMNS.index(column) for _, column in positions],
    }
    return {name: torch.tensor(numbers) for name, numbers in labels.items()}
