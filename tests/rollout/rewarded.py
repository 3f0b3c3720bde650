"""A row, and configs, of tests of R_acc by a user's function or a judge."""

import asyncio
import time

from omegaconf import OmegaConf

from tests.composing import compose_once

ROW = {
    "data_source": "mine",
    "reward_model": {"style": "rule", "ground_truth": "7"},
    "extra_info": {"index": 3, "hints": ["a"]},
    "raw_prompt": [{"role": "user", "content": "Which digit?"}],
}


def composed(*overrides):
    """The smoke recipe with keys that are set as YAML reads them."""
    config = compose_once("smoke")
    OmegaConf.set_struct(config, False)
    given = [override.removeprefix("+") for override in overrides]
    return OmegaConf.merge(config, OmegaConf.from_dotlist(given))


async def until(is_so):
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)
