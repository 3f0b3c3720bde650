"""Command line: make a packaged model again, a warm start that forgets, or random weights.

python -m vapo_verl.digits.model --out DIR [--preset long_digits]
python -m vapo_verl.digits.model warm-start --memory 18|none [--guesses 0.7] --out DIR
python -m vapo_verl.digits.model random [--family qwen3_vl] --size tiny|100m|7b --out DIR
"""

from __future__ import annotations

import argparse
import datetime
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from vapo_verl.cli_options import user_path
from vapo_verl.files import nearest_existing

if TYPE_CHECKING:
    from vapo_verl.digits.model.recipe import RecipeConfig


def main(arguments: list[str] | None = None) -> None:
    """Make a small model: train, save in bfloat16, measure, and write its card."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.out is None:
        parser.error("the following arguments are required: --out")
    made = {"random": _make_random, "warm-start": _warm_start, None: _train}[options.command]
    try:
        _check(options)
        made(options)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _check(options: argparse.Namespace) -> None:
    """Refuse a folder that cannot be made, and numbers that torch does not accept.

    Raises:
        ValueError: with the option, the value and the fix.
    """
    above = nearest_existing(options.out)
    if not above.is_dir():
        raise ValueError(f"--out {options.out}: {above} is a file; name a folder")
    if getattr(options, "threads", 1) < 1:
        raise ValueError(f"--threads {options.threads}: give 1 or more")
    if not 0 <= options.seed < 2**63:
        raise ValueError(f"--seed {options.seed}: give a number of 0 to {2**63 - 1}")


def _train(options: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    import torch

    from vapo_verl.digits.model.recipe import PRESETS, make_model

    if options.preset not in PRESETS:
        raise ValueError(f"--preset {options.preset} is unknown; use one of {', '.join(PRESETS)}")
    torch.set_num_threads(options.threads)
    config = replace(PRESETS[options.preset], seed=options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    make_model(options.out, config)
    _document(options, config, minutes=(time.monotonic() - start) / 60)


def _make_random(options: argparse.Namespace) -> None:
    import torch

    from vapo_verl.digits.model.random_models import describe, make_random_model

    config = make_random_model(
        options.out,
        options.size,
        family=options.family,
        think_tokens=options.think_tokens,
        layers=options.layers,
        vision_layers=options.vision_layers,
        vocab_size=options.vocab_size,
        max_image_tokens=options.max_image_tokens,
        weights=options.weights,
        dtype=getattr(torch, options.dtype),
        seed=options.seed,
    )
    print(f"{options.out}: {describe(config)}")


def _warm_start(options: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    import torch

    from vapo_verl.digits.model.forgetful import Forgetting
    from vapo_verl.digits.model.forgetful_start import (
        StartConfig,
        is_complete,
        make_warm_start,
        measure,
        write_card,
    )

    config = StartConfig(
        forgetting=Forgetting(memory=options.memory),
        guesses=options.guesses,
        steps=options.steps,
        seed=options.seed,
    )
    if is_complete(options.out, config):
        print(f"{options.out} holds this warm start")
        return
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    make_warm_start(options.out, config)
    minutes = (time.monotonic() - start) / 60
    memory = "none" if options.memory is None else f"{options.memory:g}"
    write_card(
        options.out,
        measure(options.out, config),
        config,
        command=(
            f"python -m vapo_verl.digits.model warm-start --memory {memory} "
            f"--guesses {options.guesses:g} --steps {options.steps} --seed {options.seed} --out DIR"
        ),
        made=(
            f"{datetime.date.today().isoformat()}, on a CPU with {options.threads} threads, in "
            f"{minutes:.0f} minutes"
        ),
    )
    print(f"{options.out}: see its README.md")


def _memory(text: str) -> float | None:
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give a number of tokens, or none") from None


def _document(options: argparse.Namespace, config: RecipeConfig, minutes: float) -> None:
    from vapo_verl.digits.model.architecture import load_model, write_json
    from vapo_verl.digits.model.evaluate import model_card
    from vapo_verl.digits.model.recipe import first_losses, measure

    figures = measure(options.out, config)
    first = first_losses(config)
    write_json(options.out / "figures.json", figures)
    write_json(options.out / "first_steps.json", {"seed": config.seed, **first})
    card = model_card(
        figures,
        first,
        parameters=load_model(options.out)[0].num_parameters(),
        command=(
            f"python -m vapo_verl.digits.model --preset {options.preset} --out DIR"
            f" --seed {config.seed}"
        ),
        date=datetime.date.today().isoformat(),
        machine=f"a {options.threads}-core CPU",
        minutes=minutes,
        seed=config.seed,
        num_rows=config.test_rows,
    )
    (options.out / "README.md").write_text(card)


def build_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m vapo_verl.digits.model",
        usage="%(prog)s --out DIR [--preset NAME] [--seed N] [--threads N]\n"
        "       %(prog)s warm-start --memory 18|none --out DIR ...\n"
        "       %(prog)s random --out DIR [--family NAME] [--size tiny|100m|7b] ...",
        description=main.__doc__,
    )
    parser.add_argument("--out", type=user_path, help="folder of the model")
    parser.add_argument(
        "--preset",
        default="digits",
        help="which packaged model to make again: digits (the default), from random weights; "
        "long_digits: the packaged digits model, taught the long questions; hasty_digits: that "
        "one, fine-tuned to re-read the image in half of its solutions",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, samples and evaluation")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    commands = parser.add_subparsers(
        dest="command", metavar="warm-start | random", title="other models"
    )
    _add_warm_start(
        commands.add_parser(
            "warm-start",
            prog="python -m vapo_verl.digits.model warm-start",
            help="a model whose predictions forget the image: warm-start --help",
            description="Train the packaged hasty_digits on the world forgetful_digits, measure it "
            "and write its card. A finished one of the same settings is kept.",
        )
    )
    _add_random(
        commands.add_parser(
            "random",
            prog="python -m vapo_verl.digits.model random",
            help="a model with random weights, for GPU checks and benchmarks: random --help",
            description="Make a Qwen-VL with random weights and the packaged model's tokenizer. "
            "Nothing is downloaded. An image token stands for 28 x 28 pixels: 1024 image tokens "
            "are an image of 896 x 896. From Qwen3-VL on it stands for 32 x 32.",
        )
    )
    return parser


def _add_warm_start(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=user_path, required=True, help="folder of the model")
    parser.add_argument(
        "--memory",
        type=_memory,
        required=True,
        help="response tokens after which a cell that was not stated is forgotten; 18 is strong "
        "forgetting; none: predictions follow the image",
    )
    parser.add_argument(
        "--guesses",
        type=float,
        default=0.1,
        help="fraction of solutions that do not read what they need; 0.1 for an accurate start, "
        "0.7 for a weak one (%(default)s)",
    )
    parser.add_argument("--steps", type=int, default=500, help="training steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of samples and evaluation")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")


def _add_random(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=user_path, required=True, help="folder of the model")
    parser.add_argument(
        "--size",
        default="100m",
        choices=["tiny", "100m", "7b"],
        help="tiny: a few million parameters, to train in tests; 100m: 99 million parameters, "
        "heads of 64; 7b: the shapes of Qwen2.5-VL-7B with 8 decoder layers, without weights",
    )
    parser.add_argument(
        "--family",
        default="qwen2_5_vl",
        choices=["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5"],
        help="the architecture",
    )
    parser.add_argument(
        "--think-tokens",
        action="store_true",
        help="make <think> and </think> added tokens that are never sampled, as they are in "
        "Qwen3-VL-Instruct",
    )
    parser.add_argument("--layers", type=int, help="decoder layers; the full 7b has 28")
    parser.add_argument("--vision-layers", type=int, help="layers of the vision tower")
    parser.add_argument(
        "--vocab-size",
        type=int,
        help="entries of model and tokenizer alike (the packaged tokenizer's; 7b: 152064)",
    )
    parser.add_argument(
        "--max-image-tokens", type=int, default=1024, help="larger images are scaled down"
    )
    parser.add_argument(
        "--weights",
        action=argparse.BooleanOptionalAction,
        help="write weights (the default, except for 7b); without them: load_format=dummy",
    )
    parser.add_argument(
        "--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"], help="of weights"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights")


if __name__ == "__main__":
    main()
