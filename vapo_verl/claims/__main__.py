"""Command line: short true or false claims about the images of a data set.

python -m vapo_verl.claims generate SOURCE --out DIR           with a model behind an endpoint
python -m vapo_verl.claims self SOURCE --out DIR --model PATH  with a model served here by vLLM
python -m vapo_verl.claims check DIR SOURCE --out DIR2         keep claims that votes confirm
python -m vapo_verl.claims audit ...                           have a sample judged by people
python -m vapo_verl.claims attach ...                          put claims into parquet rows

The environment names the endpoint: OPENAI_BASE_URL, OPENAI_API_KEY, VAPO_CLAIMS_MODEL. Exit codes:
0 all done, 1 some images failed (the next run retries them), 2 bad input or an endpoint that
refuses everything, 130 interrupted. Finished images are stored in every case.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

from vapo_verl.claims.options import (
    CheckOptions,
    EndpointOptions,
    MakeOptions,
    RunOptions,
    ServeOptions,
)
from vapo_verl.cli_options import add_options, escape_output
from vapo_verl.data.errors import DataError
from vapo_verl.process_tree import terminated_like_interrupted

BAD_INPUT, INTERRUPTED = 2, 130
_CHECK_DEFAULTS = {
    "temperature": 0.7,  # votes of a greedy model would all be the same
    "max_tokens": 1024,  # the answer is one word; thinking models use the rest to think
}


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="name of the model (VAPO_CLAIMS_MODEL)")
    for options in (RunOptions, MakeOptions, EndpointOptions):
        add_options(parser, options)


def _add_self(parser: argparse.ArgumentParser) -> None:
    for options in (ServeOptions, RunOptions, MakeOptions, EndpointOptions):
        add_options(parser, options)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="name of the judging model (VAPO_CLAIMS_MODEL)")
    for options in (CheckOptions, RunOptions, EndpointOptions):
        add_options(parser, options, _CHECK_DEFAULTS)


def _add_from(module: str) -> Callable[[argparse.ArgumentParser], None]:
    def add(parser: argparse.ArgumentParser) -> None:
        importlib.import_module(module).add_arguments(parser)

    return add


_Command = tuple[str, str, Callable[[argparse.ArgumentParser], None]]
_COMMANDS: dict[str, _Command] = {
    "generate": ("make claims with an endpoint", "vapo_verl.claims.generate", _add_generate),
    "self": ("make claims with a model served here", "vapo_verl.claims.serve", _add_self),
    "check": ("let a model vote on labels", "vapo_verl.claims.check", _add_check),
    "audit": (
        "have a sample judged by people",
        "vapo_verl.claims.audit",
        _add_from("vapo_verl.claims.audit"),
    ),
    "attach": (
        "put claims into parquet rows",
        "vapo_verl.claims.attach",
        _add_from("vapo_verl.claims.attach"),
    ),
}
"""Command -> help, module with its `run`, and function that adds its arguments."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an error that the user has to fix goes to stderr and returns 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = build_parser(arguments).parse_args(arguments)
    escape_output()
    try:
        with terminated_like_interrupted():
            return importlib.import_module(_COMMANDS[options.command][1]).run(options)
    except (DataError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """A parser that lists all commands and imports the arguments of the one that is called."""
    parser = argparse.ArgumentParser(prog="python -m vapo_verl.claims", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (text, _, add_arguments) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text}.")
        if name in arguments[:1]:
            add_arguments(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
