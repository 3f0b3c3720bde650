"""Command line: what a run folder tells, and what a checkpoint does when its rows are probed.

python -m vapo_verl.diagnostics report RUN_DIR [--compare OTHER_RUN] [--out FILE]

writes one HTML file (RUN_DIR/report.html) that opens without a network. It works while the run
trains.

python -m vapo_verl.diagnostics early-decision MODEL DATA --run RUN_DIR
python -m vapo_verl.diagnostics remedies MODEL DATA --run RUN_DIR
python -m vapo_verl.diagnostics masking MODEL DATA --run RUN_DIR
python -m vapo_verl.diagnostics perception MODEL DATA --run RUN_DIR

ask a checkpoint, in vLLM, and go on where they were stopped. Exit codes: 0 done, 2 bad input or a
place that cannot be written, 130 interrupted.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vapo_verl.data.errors import DataError
from vapo_verl.diagnostics.errors import RunError

BAD_INPUT, INTERRUPTED = 2, 130
NUM_SAMPLES = 120
PROBING = {
    "early-decision": ("answers forced along the reasoning", "early_decision"),
    "remedies": ("responses with the image again, or with a reminder to look", "remedies"),
    "masking": ("responses that go on with another image", "masking"),
    "perception": ("claims and attention along responses to held-out rows", "perception"),
}
"""Command -> help, and the package whose `command` adds its arguments and runs it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 2, with the message on stderr, for what a person has to mend."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser(arguments).parse_args(arguments)
    try:
        if options.command in PROBING:
            return _module(options.command).run(options)
        return _report(options)
    except (RunError, DataError, OSError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _module(command: str) -> Any:
    return importlib.import_module(f"vapo_verl.diagnostics.{PROBING[command][1]}.command")


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """A parser that lists all commands and imports the arguments of the one that is called."""
    parser = argparse.ArgumentParser(prog="python -m vapo_verl.diagnostics", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="one HTML file about a run")
    add = report.add_argument
    add("run_dir", type=Path, metavar="RUN_DIR", help="a run's trainer.default_local_dir")
    add("--compare", type=Path, metavar="OTHER_RUN", help="a second run, drawn dashed")
    add("--out", type=Path, metavar="FILE", help="where to write (RUN_DIR/report.html)")
    add(
        "--num-samples",
        type=int,
        default=NUM_SAMPLES,
        help="responses shown in full, of each run (%(default)s)",
    )
    add("--seed", type=int, default=0, help="draws those responses (%(default)s)")
    for name, (text, _) in PROBING.items():
        command = commands.add_parser(name, help=text, description=f"{text}.")
        if name in arguments[:1]:
            _module(name).add_arguments(command)
    return parser


def _report(options: argparse.Namespace) -> int:
    out = options.out or options.run_dir / "report.html"
    if options.num_samples < 0:
        raise RunError(f"--num-samples {options.num_samples}: give 0 or more")
    if options.run_dir.is_dir() and (out.is_dir() or not out.parent.is_dir()):
        raise RunError(f"--out {out}: give a file in a folder that exists")
    from vapo_verl.diagnostics.page import write_report  # seconds of imports
    from vapo_verl.diagnostics.run_summary import summarise_run

    folders = [options.run_dir, *([options.compare] if options.compare else [])]
    runs = [
        summarise_run(folder, name=name, num_samples=options.num_samples, seed=options.seed)
        for folder, name in zip(folders, run_names(folders), strict=True)
    ]
    try:
        write_report(out, runs)
    except OSError as error:
        raise RunError(f"cannot write {out}: {error}; give another place with --out") from error
    print(out)
    return 0


def run_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names; whole paths where two are the same."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


if __name__ == "__main__":
    sys.exit(main())
