"""``python -m vapo_verl.main +recipe=NAME [key=value ...]``: train.

Light until a run starts: ``--help`` and ``--cfg job`` import neither torch nor veRL.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from vapo_verl.composition import register

register()


@hydra.main(config_path="conf", config_name="vapo", version_base=None)
def main(config: DictConfig) -> None:
    from vapo_verl.launch import launch
    from vapo_verl.preflight import InputError

    try:
        launch(config)
    except InputError as error:
        print(f"vapo_verl: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
