"""Commands that are run one after another in one process, apart from that of pytest."""

import json
import subprocess
import sys
from collections.abc import Collection, Sequence
from typing import NamedTuple

_CODE = """
import io, json, runpy, sys
from contextlib import redirect_stderr, redirect_stdout

commands, watched = json.loads(sys.stdin.read())
ended = []
for module, *words in commands:
    before, status = set(sys.modules), None
    sys.argv = [module, *words]
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code
    loaded = [name for name in watched if name in sys.modules.keys() - before]
    ended.append([status or 0, out.getvalue(), err.getvalue(), loaded])
print(json.dumps(ended))
"""


class Ended(NamedTuple):
    status: int | str
    stdout: str
    stderr: str
    loaded: list[str]
    """Watched modules that were imported, and not by an earlier command."""


def run_commands(commands: Sequence[Sequence[str]], watched: Collection[str] = ()) -> list[Ended]:
    """`python -m` of each command, (module, argument, ...), in turn."""
    done = subprocess.run(
        # modules of earlier commands are run again
        [sys.executable, "-W", "ignore::RuntimeWarning:runpy", "-c", _CODE],
        input=json.dumps([[list(command) for command in commands], list(watched)]),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [Ended(*each) for each in json.loads(done.stdout)]
