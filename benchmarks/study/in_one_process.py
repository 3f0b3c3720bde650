"""Runs several of the project's commands one after another in one process.

Importing torch and vLLM takes longer than most of these measurements.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence

Command = tuple[str, ...]
"""A module that is run with `python -m`, and its arguments."""


def to_argument(commands: Sequence[Command]) -> str:
    """Input of :func:`main`."""
    return json.dumps(commands)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the commands in turn; stops at the first that fails and returns its exit code, else 0."""
    (text,) = sys.argv[1:] if arguments is None else arguments
    for module, *rest in json.loads(text):
        code = importlib.import_module(f"{module}.__main__").main(rest)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
