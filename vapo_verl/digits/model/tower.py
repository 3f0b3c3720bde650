"""Stage 1: train the vision tower to describe each merged token by digit, colour and position.

Joint training from scratch stays at chance, as vision and text each need the other first. A
merged token is described by its dot products with the (tied) embeddings of the words themselves, so
that vision and vocabulary share a space, and mainly the look-up of cells remains to be learnt.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from vapo_verl.digits.model.samples import encode
from vapo_verl.digits.render import render_pixels
from vapo_verl.digits.scene import COLORS, ScanPool, Scene, parse_grid, sample_scene

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
