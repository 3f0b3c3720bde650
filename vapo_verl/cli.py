"""``vapo COMMAND ...``: the package's commands under one name.

A thin layer: ``vapo doctor ...`` is ``python -m vapo_verl.doctor ...`` in the same process.
"""

import runpy
import sys
from collections.abc import Sequence
from typing import NamedTuple

from vapo_verl.version import __version__


class Command(NamedTuple):
    """A module that can be run, and its purpose."""

    module: str
    what: str


COMMANDS = {
    "train": Command("vapo_verl.main", "train a policy: +recipe=NAME [key=value ...]"),
    "doctor": Command("vapo_verl.doctor", "find trouble before a run: [+recipe=NAME ...]"),
    "report": Command("vapo_verl.report", "one HTML file of a run, alone or against another"),
    "evaluate": Command("vapo_verl.evaluation", "benchmarks, comparison of models, probes"),
    "data": Command("vapo_verl.data", "import and check data sets"),
    "claims": Command("vapo_verl.claims", "make, check, audit and attach claims"),
    "export": Command("vapo_verl.export", "a checkpoint as a model folder"),
    "gpu-check": Command("vapo_verl.gpu_check", "run the checks that need a GPU"),
}


def usage() -> str:
    """Help text: one line per command."""
    lines = [f"  {name:10} {command.what}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vapo COMMAND [ARGUMENT ...]",
            "",
            *lines,
            "",
            "vapo COMMAND --help tells more. Each is also python -m MODULE: "
            + ", ".join(command.module for command in COMMANDS.values()),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code, unless the command ends the process itself."""
    name, *rest = arguments if arguments is not None else sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"vapo_verl {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"vapo: {name} is no command; use one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    sys.argv = [f"vapo {name}", *rest]
    sys.path.append("")  # packages of the working folder, which `python -m` and Ray's workers find
    runpy.run_module(COMMANDS[name].module, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
