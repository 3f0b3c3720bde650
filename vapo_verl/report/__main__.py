"""Command line: one HTML file about a run, alone or against another.

python -m vapo_verl.report RUN_DIR [--compare OTHER_RUN] [--out FILE]

RUN_DIR/report.html opens without a network; it can be made while the run trains. Exit codes:
0 done, 2 bad input or an output that cannot be written, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vapo_verl.cli_options import OptionError, add_options, check_bounds, cli, options_from
from vapo_verl.run_folder import RunError

BAD_INPUT, INTERRUPTED = 2, 130


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """Which run, and where to write."""

    run_dir: Path = field(metadata=cli(positional="RUN_DIR"))
    """A run's trainer.default_local_dir."""
    compare: Path | None = field(default=None, metadata=cli(metavar="OTHER_RUN"))
    """A second run, drawn dashed."""
    out: Path | None = field(default=None, metadata=cli(metavar="FILE"))
    """Where to write (RUN_DIR/report.html)."""
    num_samples: int = field(default=120, metadata=cli(low=0))
    """Responses shown in full, of each run."""
    seed: int = 0
    """Selects those responses."""

    def __post_init__(self) -> None:
        check_bounds(self)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; an error that the user has to fix goes to stderr and returns 2."""
    given = build_parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    try:
        return _report(options_from(ReportOptions, given))
    except (RunError, OptionError, OSError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(prog="python -m vapo_verl.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_options(parser, ReportOptions)
    return parser


def _report(options: ReportOptions) -> int:
    out = options.out or options.run_dir / "report.html"
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
        raise RunError(f"cannot write {out}: {error}; give another path with --out") from error
    print(out)
    return 0


def run_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names; full paths if two are the same."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


if __name__ == "__main__":
    sys.exit(main())
