"""The command-line arguments of `generate`, `self` and `check`, and the options made of them."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from vapo_verl.claims.making.rules import ClaimRules
from vapo_verl.claims.options import (
    TOKEN_LIMIT_NAMES,
    CheckOptions,
    EndpointOptions,
    MakeOptions,
    RetryOptions,
    RunOptions,
)

CHECK_TEMPERATURE = 0.7
"""Votes of a greedy model would all be the same."""
CHECK_MAX_TOKENS = 1024
"""One word is asked for; thinking models spend the rest on thoughts."""


def _defaults(options: type) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(options)}


_RUN, _ENDPOINT, _CHECK = map(_defaults, (RunOptions, EndpointOptions, CheckOptions))
_RETRY = RetryOptions()
_MAKE = MakeOptions()


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Images, folder and pace: common to all three commands."""
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="parquet file, or folder of parquet or images")
    add("--out", type=Path, required=True, help="folder for the shards; goes on where one stopped")
    add("--column", default=_RUN["column"], help="images' column of parquet rows (%(default)s)")
    add("--image-root", type=Path, default=_RUN["image_root"], help="start of relative image paths")
    add("--limit", type=int, help="only the first N images of SOURCE")
    add("--max-concurrency", type=int, default=_RUN["max_concurrency"], help="images (%(default)s)")
    add("--requests-per-minute", type=float, help="start no more than these; default: no limit")
    add("--max-retries", type=int, default=_RETRY.max_retries, help="of one request (%(default)s)")
    add(
        "--backoff-s",
        type=float,
        default=_RETRY.backoff_s,
        help="first wait, then doubled (%(default)s)",
    )
    add(
        "--stop-after-failures",
        type=int,
        default=_RUN["stop_after_failures"],
        help="stop when so many images fail one after another (%(default)s)",
    )
    add("--max-pixels", type=int, help="shrink larger images before they are sent")
    add("--price-table", type=Path, help="YAML of model: {input, output}, USD per million tokens")
    add("--seed", type=int, default=_RUN["seed"], help="of jitter and of the order (%(default)s)")
    add(
        "--dry-run",
        action="store_true",
        help="count images, estimate tokens and price; ask nothing",
    )


def add_endpoint_arguments(
    parser: argparse.ArgumentParser,
    *,
    max_tokens: int = _ENDPOINT["max_tokens"],
    temperature: float | None = None,
) -> None:
    """How the model samples; where it is stands in the environment."""
    add = parser.add_argument
    shown = "server" if temperature is None else temperature
    add(
        "--timeout-s", type=float, default=_ENDPOINT["timeout_s"], help="of a request (%(default)s)"
    )
    add("--max-tokens", type=int, default=max_tokens, help="limit of one answer (%(default)s)")
    add(
        "--token-limit-name",
        choices=TOKEN_LIMIT_NAMES,
        default=_ENDPOINT["token_limit_name"],
        help="what the endpoint calls that limit (%(default)s)",
    )
    add(
        "--temperature",
        type=_temperature,
        default=temperature,
        help=f"a number, or `server` for the endpoint's own ({shown})",
    )


def add_make_arguments(parser: argparse.ArgumentParser) -> None:
    """What is asked for: common to `generate` and `self`."""
    add, rules = parser.add_argument, _MAKE.rules
    add(
        "--num-claims",
        type=int,
        default=rules.num_claims,
        help="per image, half true (%(default)s)",
    )
    add(
        "--max-attempts",
        type=int,
        default=_MAKE.max_attempts,
        help="answers per image (%(default)s)",
    )
    add(
        "--max-low-level",
        type=float,
        default=rules.max_low_level_share,
        help="largest share of claims about colours and counts (%(default)s)",
    )
    add("--require-full", action="store_true", help="store no image with fewer claims")


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("claims", type=Path, metavar="CLAIMS_DIR", help="folder that generate or self wrote")
    add_run_arguments(parser)
    add("--votes", type=int, default=_CHECK["votes"], help="votes per claim (%(default)s)")
    add("--separate-votes", action="store_true", help="one request a vote, where `n` is refused")


def run_options(arguments: argparse.Namespace) -> RunOptions:
    retry = RetryOptions(max_retries=arguments.max_retries, backoff_s=arguments.backoff_s)
    return RunOptions(**_given(RunOptions, arguments), retry=retry)


def make_options(arguments: argparse.Namespace) -> MakeOptions:
    rules = ClaimRules(num_claims=arguments.num_claims, max_low_level_share=arguments.max_low_level)
    return MakeOptions(**_given(MakeOptions, arguments), rules=rules)


def check_options(arguments: argparse.Namespace) -> CheckOptions:
    return CheckOptions(**_given(CheckOptions, arguments))


def endpoint_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of EndpointOptions that the command line sets, without the model."""
    given = _given(EndpointOptions, arguments)
    return {name: value for name, value in given.items() if name != "model"}


def _given(options: type, arguments: argparse.Namespace) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(options)}
    return {name: value for name, value in vars(arguments).items() if name in names}


def _temperature(text: str) -> float | None:
    return None if text == "server" else float(text)
