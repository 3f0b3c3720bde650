"""Command line: evaluate a checkpoint on benchmarks, or probe it on held-out rows.

python -m vapo_verl.evaluation benchmark MODEL DATA... --out DIR
python -m vapo_verl.evaluation score FILE --rules NAME --out OUT.jsonl
python -m vapo_verl.evaluation compare DIR DIR... --out DIR
python -m vapo_verl.evaluation early-decision MODEL DATA --run RUN_DIR
python -m vapo_verl.evaluation interventions MODEL DATA --run RUN_DIR
python -m vapo_verl.evaluation image-swap MODEL DATA --run RUN_DIR
python -m vapo_verl.evaluation perception MODEL DATA --run RUN_DIR

Commands with a MODEL run it in vLLM, and resume where they were stopped. Exit codes: 0 done, 2 bad
input or a folder that cannot be written, 130 interrupted.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from vapo_verl.cli_options import OptionError
from vapo_verl.data.errors import DataError
from vapo_verl.run_folder import RunError

BAD_INPUT, INTERRUPTED = 2, 130
BENCHMARKS = {
    "benchmark": (
        "accuracy on benchmark files",
        "vapo_verl.evaluation.benchmarks.benchmark_command",
    ),
    "score": (
        "stored predictions graded by the rules of a benchmark",
        "vapo_verl.evaluation.benchmarks.score_command",
    ),
    "compare": (
        "results of benchmarks side by side",
        "vapo_verl.evaluation.benchmarks.compare_command",
    ),
}
PROBING = {
    "early-decision": (
        "answers forced along the reasoning",
        "vapo_verl.evaluation.early_decision.decision_command",
    ),
    "interventions": (
        "responses with the image again, or with a reminder to look",
        "vapo_verl.evaluation.interventions.intervention_command",
    ),
    "image-swap": (
        "responses continued with another image",
        "vapo_verl.evaluation.image_swap.swap_command",
    ),
    "perception": (
        "claims and attention along responses to held-out rows",
        "vapo_verl.evaluation.perception.perception_command",
    ),
}
COMMANDS = BENCHMARKS | PROBING
"""Command -> help, and the module that adds its arguments and runs it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 2, with the message on stderr, for errors that the user can fix."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = build_parser(arguments).parse_args(arguments)
    try:
        return _module(options.command).run(options)
    except (RunError, DataError, OptionError, OSError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _module(command: str) -> Any:
    return importlib.import_module(COMMANDS[command][1])


def build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """A parser that lists all commands and imports the arguments of the one that is called."""
    parser = argparse.ArgumentParser(prog="python -m vapo_verl.evaluation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (text, _) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text}.")
        if name in arguments[:1]:
            _module(name).add_arguments(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
