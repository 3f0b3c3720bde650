"""Recipes for tests, each composed once a process: Hydra takes half a second, a copy a tenth."""

from collections.abc import Sequence
from copy import deepcopy
from functools import cache

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from vapo_verl.hydra_config import compose_recipe

_recipe = cache(compose_recipe)


def compose_once(recipe: str, overrides: Sequence[str] = ()) -> DictConfig:
    """A config of one's own, as `compose_recipe` gives it.

    Hydra's own functions read the overrides and set them, as at the end of composing. Overrides
    that select a group's option or set Hydra itself need `compose_recipe`.
    """
    config = deepcopy(_recipe(recipe))
    parsed = OverridesParser.create().parse_overrides([*overrides])
    ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
    return config
