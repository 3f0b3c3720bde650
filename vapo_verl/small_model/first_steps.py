"""The first losses of both stages: cheap to make again, so that a test notices a changed recipe."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import islice

from vapo_verl.data.digits.scans import scan_pool
from vapo_verl.small_model.recipe import RecipeConfig, new_model
from vapo_verl.small_model.samples import SampleMaker
from vapo_verl.small_model.tower import train_tower
from vapo_verl.small_model.warmup import warm_up


def first_losses(config: RecipeConfig, num_steps: int = 4) -> dict[str, list]:
    """Return the losses of the first tower steps, and of warm-up steps taken right behind those."""
    model, processor = new_model(config.seed)
    pool = scan_pool("train")
    tower = replace(config.tower, seed=config.seed)
    tower_losses = list(islice(train_tower(model, processor, pool, tower), num_steps))
    maker = SampleMaker(tokenizer=processor.tokenizer, pool=pool)
    warmup = replace(config.warmup, seed=config.seed)
    joint = islice(warm_up(model, processor, maker, warmup), num_steps)
    return {"tower": tower_losses, "warm_up": [asdict(loss) for loss in joint]}
