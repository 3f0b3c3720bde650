"""The recipes: tokenizer, tower, and a warm-up that stops early, to leave room for RL."""

import logging
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from vapo_verl.digits.build import DigitsConfig, build_split
from vapo_verl.digits.model import model_dir
from vapo_verl.digits.model.architecture import (
    TowerConfig,
    build_model,
    build_processor,
    load_model,
    save_model,
    train_tower,
)
from vapo_verl.digits.model.evaluate import Figures, chance, evaluate, mixed_groups, swap_images
from vapo_verl.digits.model.samples import SampleMaker
from vapo_verl.digits.model.tokenizer import corpus, train_tokenizer
from vapo_verl.digits.model.warmup import Part, StepLoss, WarmupConfig, warm_up
from vapo_verl.digits.scene import scan_pool

_logger = logging.getLogger(__name__)
_LOG_EVERY = 20
_STEPS_A_PART = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeConfig:
    """All settings that determine the model."""

    seed: int = 0
    start: str | None = None
    """The packaged model to start from; None: a new tokenizer and random weights."""
    tower: TowerConfig | None = field(default_factory=TowerConfig)
    """None leaves the tower unchanged."""
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    check_every: int = 200
    """Steps between validations, once questions are trained."""
    check_rows: int = 96
    stop_accuracy: float | None = 0.4
    """Greedy accuracy on validation rows at which the warm-up ends: RL needs room to improve. None
    trains to the end of the schedule, where the learning rate is 0."""
    test_rows: int = 128
    """Test rows of every grid for the final figures."""


PRESETS = {
    "digits": RecipeConfig(),
    "long_digits": RecipeConfig(
        start="digits",
        tower=None,
        warmup=WarmupConfig(
            parts=(Part(kind="question", steps=1000, num_probes=4),),
            questions="long",
            grids=("3x3",),
            learning_rate=1e-3,
        ),
        stop_accuracy=None,
    ),
    "hasty_digits": RecipeConfig(
        start="long_digits",
        tower=None,
        warmup=WarmupConfig(
            parts=(Part(kind="question", steps=700, num_probes=4),),
            questions="parts",
            hasty=0.5,
            grids=("3x3",),
            learning_rate=1e-3,
        ),
        stop_accuracy=None,
    ),
}
"""The recipe of each packaged model, by its folder's name."""


def starting_model(
    config: RecipeConfig,
) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """Return the model that the recipe starts from and its processor."""
    if config.start is not None:
        return load_model(model_dir(config.start))
    tokenizer = train_tokenizer(corpus())
    torch.manual_seed(config.seed)
    return build_model(tokenizer), build_processor(tokenizer)


def make_model(out: Path, config: RecipeConfig) -> None:
    """Train the model and save it in `out`."""
    model, processor = starting_model(config)
    if config.tower is not None:
        tower = replace(config.tower, seed=config.seed)
        losses = train_tower(model, processor, scan_pool("train"), tower)
        for step, loss in enumerate(losses, start=1):
            if step % _LOG_EVERY == 0:
                _logger.info("tower step %d loss %.3f", step, loss)
    _warm_up_until(model, processor, config, out)
    save_model(model, processor, out)


def measure(folder: Path, config: RecipeConfig) -> dict[str, Any]:
    """Return the saved model's figures on unseen test scans, by grid."""
    model, processor = load_model(folder)
    torch.manual_seed(config.seed)
    figures: dict[str, Any] = {}
    for grid in config.warmup.grids:
        data = DigitsConfig(
            test=config.test_rows,
            grids=(grid,),
            seed=config.seed,
            questions=config.warmup.questions,
        )
        rows = build_split(data, "test")
        conditions = {
            "greedy": evaluate(model, processor, rows),
            "temperature 1": evaluate(model, processor, rows, temperature=1.0),
            "greedy, other image": evaluate(model, processor, swap_images(rows)),
        }
        figures[grid] = {
            "responses": {name: asdict(found) for name, found in conditions.items()},
            "chance": chance(rows),
            "mixed_groups": mixed_groups(model, processor, rows),
        }
    return figures


def _warm_up_until(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    config: RecipeConfig,
    out: Path,
) -> None:
    maker = SampleMaker(tokenizer=processor.tokenizer, pool=scan_pool("train"))
    warmup = replace(config.warmup, seed=config.seed)
    data = DigitsConfig(
        val=config.check_rows, grids=warmup.grids, seed=config.seed, questions=warmup.questions
    )
    rows = build_split(data, "val")
    for step, loss in enumerate(warm_up(model, processor, maker, warmup), start=1):
        _log_step(step, loss)
        if step > warmup.steps_before_questions and step % config.check_every == 0:
            figures = evaluate(model, processor, rows)
            _log_figures(step, figures)
            save_model(model, processor, out)  # so that an interrupted run leaves a model
            if config.stop_accuracy is not None and figures.accuracy >= config.stop_accuracy:
                return


def _log_step(step: int, loss: StepLoss) -> None:
    if step % _LOG_EVERY == 0:
        _logger.info("step %d response %.3f verdict %.3f", step, loss.response, loss.verdict)


def _log_figures(step: int, figures: Figures) -> None:
    _logger.info("step %d on validation rows: %s", step, figures)


def first_losses(config: RecipeConfig, num_tower_steps: int = 4) -> dict[str, list]:
    """Return the losses of the first tower steps, then of two steps of every warm-up part.

    The tower's are those of the full recipe; the others start from this barely trained tower.
    """
    model, processor = starting_model(config)
    pool = scan_pool("train")
    tower_losses: list[float] = []
    if config.tower is not None:
        tower = train_tower(model, processor, pool, replace(config.tower, seed=config.seed))
        tower_losses += islice(tower, num_tower_steps)
    maker = SampleMaker(tokenizer=processor.tokenizer, pool=pool)
    parts = tuple(replace(part, steps=_STEPS_A_PART) for part in config.warmup.parts)
    warmup = replace(config.warmup, seed=config.seed, parts=parts)
    return {
        "tower": tower_losses,
        "warm_up": [asdict(loss) for loss in warm_up(model, processor, maker, warmup)],
    }
