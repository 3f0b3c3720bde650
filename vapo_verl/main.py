"""``python -m vapo_verl.main +recipe=NAME [key=value ...]``: train.

Light until a run starts: ``--help`` and ``--cfg job`` import neither torch nor veRL.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vapo_verl.composition import recipe_names, register

register()


@hydra.main(config_path="conf", config_name="vapo", version_base=None)
def main(config: DictConfig) -> None:
    choices = HydraConfig.get().runtime.choices
    if "recipe" not in choices:
        fail(f"no recipe was given; add +recipe=NAME, one of {', '.join(recipe_names())}")
    config.vapo.recipe = choices["recipe"]
    from vapo_verl.launch import ProcessDied, launch
    from vapo_verl.preflight import InputError
    from vapo_verl.trainer.checkpoints import CheckpointError
    from vapo_verl.trainer.stopping import EXIT_STOPPED, RunStopped

    try:
        launch(config)
    except InputError as error:
        fail(str(error))
    except CheckpointError as error:
        fail(error.message, exit_code=1)
    except ProcessDied as error:
        fail(str(error), exit_code=1)
    except RunStopped as stopped:
        place = "before the first step" if stopped.step is None else f"at step {stopped.step}"
        print(f"Stopped on request {place}; the same command resumes.")
        raise SystemExit(EXIT_STOPPED) from None


def fail(message: str, exit_code: int = 2) -> NoReturn:
    """End with a message for a person instead of a stack trace."""
    print(f"vapo_verl: {message}", file=sys.stderr)
    raise SystemExit(exit_code)


if __name__ == "__main__":
    main()
