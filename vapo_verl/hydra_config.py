"""The Python side of the packaged Hydra config: defaults, paths, recipe names.

Light: composing a config imports neither torch nor veRL.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from vapo_verl.config import VapoConfig

PACKAGE = Path(__file__).parent
CONFIGS = PACKAGE / "conf"
RECIPES = CONFIGS / "recipe"


def register() -> None:
    """Make the packaged config composable; needed before Hydra runs, safe to repeat."""
    OmegaConf.register_new_resolver("vapo.verl_config_dir", _verl_config_dir, replace=True)
    OmegaConf.register_new_resolver("vapo.package_file", _package_file, replace=True)
    OmegaConf.register_new_resolver("vapo.recipe_names", _recipe_list, replace=True)
    OmegaConf.register_new_resolver("vapo.on_nodes", _on_nodes, replace=True)
    defaults = asdict(VapoConfig())  # every default lives in the dataclasses alone
    ConfigStore.instance().store(group="vapo", name="defaults", node=defaults, provider="vapo_verl")


def compose_recipe(recipe: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The config of ``+recipe=RECIPE OVERRIDES``, as the command line composes it."""
    register()
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose("vapo", [f"+recipe={recipe}", *overrides])


def also_in(folder: Path) -> str:
    """The override that makes :func:`compose_recipe` search `folder`, too, as `--config-dir`."""
    places = (_verl_config_dir(), f"file://{folder.resolve()}")
    quoted = ("'{}'".format(place.replace("'", r"\'")) for place in places)
    return f"hydra.searchpath=[{','.join(quoted)}]"


def compose_base() -> DictConfig:
    """The config without a recipe: veRL's defaults and this package's."""
    register()
    running = GlobalHydra.instance().hydra  # within hydra.main there is one already
    GlobalHydra.instance().hydra = None
    try:
        with initialize_config_dir(str(CONFIGS), version_base=None):
            return compose("vapo")
    finally:
        GlobalHydra.instance().hydra = running


def recipe_names(folder: Path = CONFIGS) -> list[str]:
    """Recipes of a folder of configs, the packaged one by default; names with a leading underscore
    are parts of others."""
    found = (folder / "recipe").glob("*.yaml")
    return sorted(path.stem for path in found if not path.stem.startswith("_"))


def _recipe_list() -> str:
    return " ".join(recipe_names())


def _on_nodes(each: int, nodes: object) -> int:
    """Processes of a run with `each` on a node; what is no number of nodes is refused later."""
    return each * nodes if isinstance(nodes, int) and nodes > 0 else each


def _verl_config_dir() -> str:
    """veRL's config folder, found without importing veRL, which would import torch."""
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("verl is not installed; run `make setup`")
    return f"file://{Path(spec.submodule_search_locations[0]) / 'trainer' / 'config'}"


def _package_file(name: str) -> str:
    return str(PACKAGE / name)
