"""Command line: python -m vapo_verl.small_model --out DIR [--preset long_digits]."""

from __future__ import annotations

import argparse
import datetime
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vapo_verl.small_model.recipe import RecipeConfig


def main(arguments: list[str] | None = None) -> None:
    """Make a small model: train, save in bfloat16, measure, and write its card."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    import torch

    from vapo_verl.small_model.recipe import PRESETS, make_model

    if options.preset not in PRESETS:
        raise SystemExit(
            f"error: --preset {options.preset} is unknown; use one of {', '.join(PRESETS)}"
        )
    torch.set_num_threads(options.threads)
    config = replace(PRESETS[options.preset], seed=options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    make_model(options.out, config)
    _document(options, config, minutes=(time.monotonic() - start) / 60)


def _document(options: argparse.Namespace, config: RecipeConfig, minutes: float) -> None:
    from vapo_verl.small_model.card import model_card
    from vapo_verl.small_model.first_steps import first_losses
    from vapo_verl.small_model.recipe import measure
    from vapo_verl.small_model.store import load_model, write_json

    figures = measure(options.out, config)
    first = first_losses(config)
    write_json(options.out / "figures.json", figures)
    write_json(options.out / "first_steps.json", {"seed": config.seed, **first})
    card = model_card(
        figures,
        first,
        parameters=load_model(options.out)[0].num_parameters(),
        command=(
            f"python -m vapo_verl.small_model --preset {options.preset} --out DIR"
            f" --seed {config.seed}"
        ),
        date=datetime.date.today().isoformat(),
        machine=f"a {options.threads}-core CPU",
        minutes=minutes,
        seed=config.seed,
        num_rows=config.test_rows,
    )
    (options.out / "README.md").write_text(card)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vapo_verl.small_model", description=main.__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument(
        "--preset",
        default="digits",
        help="which packaged model to make again: digits (the default), from random weights; "
        "long_digits: the packaged digits model, taught the long questions; hasty_digits: that "
        "one, taught to look again in half of its solutions",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, samples and evaluation")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    return parser


if __name__ == "__main__":
    main()
