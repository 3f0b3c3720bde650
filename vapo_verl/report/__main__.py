"""Command line: one HTML file about a run, alone or against another.

python -m vapo_verl.report RUN_DIR [--compare OTHER_RUN] [--out FILE]

It opens without a network (RUN_DIR/report.html), and can be made while the run trains. Exit codes:
0 done, 2 bad input or a place that cannot be written, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vapo_verl.run_folder import RunError

BAD_INPUT, INTERRUPTED = 2, 130
NUM_SAMPLES = 120


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; returns 2, with the message on stderr, for what a user has to fix."""
    options = _parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    try:
        return _report(options)
    except (RunError, OSError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vapo_verl.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
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
    return parser


def _report(options: argparse.Namespace) -> int:
    out = options.out or options.run_dir / "report.html"
    if options.num_samples < 0:
        raise RunError(f"--num-samples {options.num_samples}: give 0 or more")
    if options.run_dir.is_dir() and (out.is_dir() or not out.parent.is_dir()):
        raise RunError(f"--out {out}: give a file in a folder that exists")
    from vapo_verl.report.page import write_report  # seconds of imports
    from vapo_verl.report.run_summary import summarise_run

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
