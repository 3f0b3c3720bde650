"""The whole recipe: tokenizer, tower, warm-up, and a stop while there is much left to learn."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from vapo_verl.data.digits.build import DigitsConfig, build_split
from vapo_verl.data.digits.scans import scan_pool
from vapo_verl.small_model.architecture import build_model, build_processor
from vapo_verl.small_model.corpus import corpus
from vapo_verl.small_model.evaluate import Figures, evaluate, swap_images
from vapo_verl.small_model.samples import SampleMaker
from vapo_verl.small_model.store import load_model, save_model
from vapo_verl.small_model.tokenizer import train_tokenizer
from vapo_verl.small_model.tower import TowerConfig, train_tower
from vapo_verl.small_model.warmup import StepLoss, WarmupConfig, warm_up

_logger = logging.getLogger(__name__)
_LOG_EVERY = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeConfig:
    """Everything that decides what the model becomes."""

    seed: int = 0
    tower: TowerConfig = field(default_factory=TowerConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    check_every: int = 200
    """Steps between looks at validation rows, once questions are learnt."""
    check_rows: int = 96
    stop_accuracy: float = 0.4
    """Greedy accuracy on validation rows at which the warm-up ends: RL needs room to improve."""
    test_rows: int = 128
    """Test rows of every grid for the final figures."""


def new_model(seed: int) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """Return the untrained model and its processor."""
    tokenizer = train_tokenizer(corpus())
    torch.manual_seed(seed)
    return build_model(tokenizer), build_processor(tokenizer)


def make_model(out: Path, config: RecipeConfig) -> None:
    """Train the model and save it in `out`."""
    model, processor = new_model(config.seed)
    tower = replace(config.tower, seed=config.seed)
    losses = train_tower(model, processor, scan_pool("train"), tower)
    for step, loss in enumerate(losses, start=1):
        if step % _LOG_EVERY == 0:
            _logger.info("tower step %d loss %.3f", step, loss)
    _warm_up_until(model, processor, config, out)
    save_model(model, processor, out)


def measure(folder: Path, config: RecipeConfig) -> dict[str, Any]:
    """Return the saved model's figures on unseen test scans, by grid and condition."""
    model, processor = load_model(folder)
    torch.manual_seed(config.seed)
    figures = {}
    for grid in config.warmup.grids:
        data = DigitsConfig(test=config.test_rows, grids=(grid,), seed=config.seed)
        rows = build_split(data, "test")
        figures[grid] = {
            "greedy": asdict(evaluate(model, processor, rows)),
            "temperature 1": asdict(evaluate(model, processor, rows, temperature=1.0)),
            "greedy, other image": asdict(evaluate(model, processor, swap_images(rows))),
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
    data = DigitsConfig(val=config.check_rows, grids=warmup.grids, seed=config.seed)
    rows = build_split(data, "val")
    for step, loss in enumerate(warm_up(model, processor, maker, warmup), start=1):
        _log_step(step, loss)
        if step > warmup.parts[0].steps and step % config.check_every == 0:
            figures = evaluate(model, processor, rows)
            _log_figures(step, figures)
            save_model(model, processor, out)  # so that a run cut short has left something
            if figures.accuracy >= config.stop_accuracy:
                return


def _log_step(step: int, loss: StepLoss) -> None:
    if step % _LOG_EVERY == 0:
        _logger.info("step %d response %.3f verdict %.3f", step, loss.response, loss.verdict)


def _log_figures(step: int, figures: Figures) -> None:
    shares = ", ".join(f"{name} {share:.2f}" for name, share in asdict(figures).items())
    _logger.info("step %d on validation rows: %s", step, shares)
