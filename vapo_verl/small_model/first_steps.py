"""A rehearsal of the recipe in a few steps of every part: a test notices by it when it changes."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import islice

from vapo_verl.data.digits.scans import scan_pool
from vapo_verl.small_model.recipe import RecipeConfig, starting_model
from vapo_verl.small_model.samples import SampleMaker
from vapo_verl.small_model.tower import train_tower
from vapo_verl.small_model.warmup import warm_up

_STEPS_A_PART = 2


def first_losses(config: RecipeConfig, num_tower_steps: int = 4) -> dict[str, list]:
    """Return the losses of the first tower steps, then of two steps of every warm-up part.

    The tower's are those of the full recipe; the rest start from a tower that is hardly trained.
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
