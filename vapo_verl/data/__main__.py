"""Command line: check data files, and import published data sets.

python -m vapo_verl.data check FILE...
python -m vapo_verl.data import-vapo-thinker SRC... --out OUT
python -m vapo_verl.data import-plain SRC... --out OUT --data-source NAME [--image-root DIR]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vapo_verl.cli_options import add_options, options_from
from vapo_verl.data.claims_column import CLAIMS_PER_IMAGE
from vapo_verl.data.errors import DataError
from vapo_verl.data.importers.import_options import ImportOptions
from vapo_verl.data.importers.plain import plain_reader
from vapo_verl.data.importers.run import import_rows
from vapo_verl.data.importers.vapo_thinker import vapo_thinker_reader
from vapo_verl.data.rows import check_parquet

_READERS = {"import-vapo-thinker": vapo_thinker_reader, "import-plain": plain_reader}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 1, with the message on stderr, for what a user has to fix."""
    options = _parser().parse_args(arguments)
    try:
        return _check(options) if options.command == "check" else _import(options)
    except (DataError, OSError) as error:  # OSError: no room, or no right to write there
        print(error, file=sys.stderr)
        return 1


def _check(options: argparse.Namespace) -> int:
    """Check every file, whatever the ones before it hold."""
    status = 0
    for path in options.files:
        try:
            report = check_parquet(
                path,
                key="FILE",
                min_claims=options.min_claims,
                max_images_checked=options.max_images_checked,
                decode_images=options.decode_images,
                show_progress=True,
            )
            print(report)
        except DataError as error:
            print(error, file=sys.stderr)
            status = 1
    return status


def _import(options: argparse.Namespace) -> int:
    importing = options_from(ImportOptions, options)
    print(import_rows(options.sources, _READERS[options.command], importing))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vapo_verl.data", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    _add_check(commands.add_parser("check", help="check rows against the row format"))
    thinker = commands.add_parser("import-vapo-thinker", help="VAPO-Thinker-train36k, with claims")
    _add_import(thinker, data_source="vapo_thinker")
    plain = commands.add_parser("import-plain", help="ViRL39K, geometry3k and the like, no claims")
    _add_import(plain)
    return parser


def _add_check(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILE")
    add(
        "--min-claims",
        type=int,
        default=CLAIMS_PER_IMAGE,
        help="count rows with fewer (%(default)s)",
    )
    add("--max-images-checked", type=int, help="open at most this many images per file")
    add("--decode-images", action="store_true", help="read all pixels: slow, finds cut-off files")


def _add_import(parser: argparse.ArgumentParser, **defaults: str) -> None:
    parser.add_argument("sources", nargs="+", type=Path, metavar="SRC")
    add_options(parser, ImportOptions, defaults)


if __name__ == "__main__":
    sys.exit(main())
