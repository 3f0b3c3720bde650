"""The Python side of the packaged Hydra config: defaults, paths, recipe names.

Light: composing a config imports neither torch nor veRL.
"""

import importlib.util
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vapo_verl.config import VapoConfig, flat

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


@cache
def base_values() -> Mapping[str, Any]:
    """Dotted key -> value of :func:`compose_base`; references are texts, which tell no type."""
    values: Any = OmegaConf.to_container(compose_base(), resolve=False)
    return flat(values)


class FolderForEachRun(Callback):
    """Refuses a sweep in which two runs have one folder, before its first run."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with code 2 and a message; Hydra makes warnings of other errors."""
        try:
            check_sweep(config, str(kwargs["config_name"]))
        except ValueError as error:
            print(f"vapo_verl: {error}", file=sys.stderr)
            raise SystemExit(2) from None


def check_sweep(config: DictConfig, config_name: str) -> None:
    """Compose all runs of a sweep by Hydra's own sweeper, and compare their folders.

    The second run in a folder would be refused, or end at once: after the first one, days later. It
    is refused here too where it would only lengthen the first (``trainer.total_training_steps``).
    Runs that only validate may share one.

    Args:
        config: of the sweep, with Hydra's part.

    Raises:
        ValueError: two runs have the same ``trainer.default_local_dir``.
    """
    folders = set()
    try:
        for overrides in _runs_of(config):
            trainer = compose(config_name, list(overrides)).trainer
            folder = Path(trainer.default_local_dir).expanduser().absolute()
            if folder in folders and not trainer.val_only:
                raise ValueError(
                    f"trainer.default_local_dir={trainer.default_local_dir} is the folder of more "
                    "than one run of this sweep; put what is swept into trainer.experiment_name, "
                    "as 'trainer.experiment_name=mine_${vapo.seed}' for vapo.seed=0,1"
                )
            folders.add(folder)
    except (HydraException, OmegaConfBaseException, TypeError):  # TypeError: a null folder
        return  # the sweeper, or the run, meets the same error and reports it


def _runs_of(config: DictConfig) -> Iterator[Sequence[str]]:
    """The overrides of each run of a sweep; none where another sweeper chooses them."""
    sweeper = config.hydra.sweeper
    given: Any = OmegaConf.to_container(config.hydra.overrides, resolve=False)  # as Hydra does
    if not sweeper.get("_target_", "").endswith(".BasicSweeper"):
        return
    texts = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    choices: dict[str, list[str]] = {}
    for override in parser.parse_overrides([*texts, *given["task"]]):
        key = override.get_key_element()
        if not override.is_sweep_override():
            values = [override.get_value_element_as_str()]
        elif override.is_discrete_sweep():
            values = list(override.sweep_string_iterator())
        else:
            return
        choices[key] = [f"{key}={value}" for value in values]
    if {"recipe", "+recipe"} & choices.keys():
        yield from ([*given["hydra"], *run] for run in itertools.product(*choices.values()))


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
