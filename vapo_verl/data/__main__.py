"""Command line: check and grade data files, and import published data sets.

python -m vapo_verl.data check FILE... [--skip-bad-rows OUT]
python -m vapo_verl.data grade FILE [--style STYLE] [--predictions COLUMN] [--out OUT]
python -m vapo_verl.data import-vapo-thinker SRC... --out OUT
python -m vapo_verl.data import-plain SRC... --out OUT --data-source NAME [--image-root DIR]

SRC: parquet files, or JSON lines (.jsonl, .ndjson).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vapo_verl.cli_options import add_options, escape_output, options_from, user_path
from vapo_verl.config import ANSWER_STYLES, CONTROL_TOKENS
from vapo_verl.data.claims_column import CLAIMS_PER_IMAGE
from vapo_verl.data.control_tokens import ControlTokens, model_folder, tokenizer_tokens
from vapo_verl.data.errors import DataError, require_other_file, require_output
from vapo_verl.data.grade import PREDICTION_COLUMNS, grade_file
from vapo_verl.data.importers.plain import plain_reader
from vapo_verl.data.importers.run import ImportOptions, import_rows
from vapo_verl.data.importers.vapo_thinker import vapo_thinker_reader
from vapo_verl.data.rows import (
    CheckReport,
    RowRules,
    check_parquet,
    num_duplicates,
    require_rows,
    write_usable,
)
from vapo_verl.process_tree import terminated_like_interrupted

INTERRUPTED = 130
_READERS = {"import-vapo-thinker": vapo_thinker_reader, "import-plain": plain_reader}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an error that the user has to fix goes to stderr and returns 1."""
    options = build_parser().parse_args(arguments)
    escape_output()
    run = {"check": _check, "grade": _grade}.get(options.command, _import)
    try:
        with terminated_like_interrupted():
            return run(options)
    except (DataError, OSError) as error:  # OSError: no space, or no permission to write
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _check(options: argparse.Namespace) -> int:
    """Check every file, even after bad ones, and compare each with the files before it."""
    if options.skip_bad_rows and len(options.files) > 1:
        raise DataError(
            f"--skip-bad-rows: {len(options.files)} files are given; give one at a time"
        )
    if options.skip_bad_rows:
        require_output(options.skip_bad_rows, "--skip-bad-rows", suffix=".parquet")
        require_other_file(options.skip_bad_rows, options.files[0], "--skip-bad-rows")
    rules = _rules(options)
    status, reports = 0, list[CheckReport]()
    for path in options.files:
        try:
            report = check_parquet(
                path,
                key="FILE",
                rules=rules,
                min_claims=options.min_claims,
                max_images_checked=options.max_images_checked,
                decode_images=not options.headers_only,
                image_root=options.image_root,
                show_progress=True,
                skip_bad_rows=options.skip_bad_rows is not None,
            )
            print(report)
            if options.skip_bad_rows:
                num_rows = write_usable(path, options.skip_bad_rows, report)
                print(f"{options.skip_bad_rows}: {num_rows} rows written")
            require_rows(
                len(report.fingerprints) - len(report.bad_rows),
                options.batch_size,
                key=str(path),
                needed_by=f"--batch-size {options.batch_size}",
            )
        except DataError as error:
            print(error, file=sys.stderr)
            status = 1
        else:
            for other in reports:
                if both := num_duplicates(other, report):
                    print(f"warning: {both} rows of {path} ask what a row of {other.path} asks")
            reports.append(report)
    return status


def _rules(options: argparse.Namespace) -> RowRules:
    """Rules for the rows; raises DataError if --model has no tokenizer."""
    controls = ControlTokens()
    if options.model is not None:
        folder = model_folder(options.model)
        tokens = tokenizer_tokens(folder) if folder is not None else None
        if tokens is None:
            problem = "is not on this machine" if folder is None else "has no tokenizer files here"
            fix = "give a folder, or download the model first: hf download NAME"
            raise DataError(f"--model: {options.model} {problem}; {fix}")
        controls = ControlTokens(tokens)
    return RowRules(
        controls=controls,
        refuse_controls=options.control_tokens == "refuse",
        max_images=options.max_images,
        refuse_media=options.min_claims > 0,
    )


def _grade(options: argparse.Namespace) -> int:
    """Grade a file; returns 1 if a ground truth is not correct against itself."""
    report = grade_file(
        options.file,
        style=options.style,
        prediction_column=options.predictions,
        out=options.out,
        shown_per_kind=options.show,
        show_progress=True,
    )
    print(report)
    return 1 if report.num_errors else 0


def _import(options: argparse.Namespace) -> int:
    importing = options_from(ImportOptions, options)
    print(import_rows(options.sources, _READERS[options.command], importing))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(prog="python -m vapo_verl.data", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    _add_check(commands.add_parser("check", help="check rows against the row format"))
    _add_grade(commands.add_parser("grade", help="grade ground truths against themselves"))
    thinker = commands.add_parser("import-vapo-thinker", help="VAPO-Thinker-train36k, with claims")
    _add_import(thinker, data_source="vapo_thinker")
    plain = commands.add_parser("import-plain", help="JSON lines of your own, ViRL39K and the like")
    _add_import(plain)
    return parser


def _add_check(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("files", nargs="+", type=user_path, metavar="FILE")
    add(
        "--min-claims",
        type=int,
        default=CLAIMS_PER_IMAGE,
        help="count rows with fewer (%(default)s); 0: rows need none, and rows with videos pass",
    )
    add("--headers-only", action="store_true", help="do not read the pixels of images: fast")
    add("--max-images-checked", type=int, help="open at most this many images per file")
    add(
        "--image-root",
        type=user_path,
        default=Path(),
        metavar="DIR",
        help="where relative image paths start (%(default)s); in a run: its working directory",
    )
    add("--max-images", type=int, help="refuse rows with more images, as the engine does")
    add("--batch-size", type=int, default=1, help="refuse files with fewer rows (%(default)s)")
    add("--model", help="look for the control tokens of its tokenizer; default: those of Qwen-VL")
    add(
        "--control-tokens",
        choices=CONTROL_TOKENS,
        default=CONTROL_TOKENS[0],
        help="as vapo.data.control_tokens: refuse such rows, or read them as plain text",
    )
    add(
        "--skip-bad-rows",
        type=user_path,
        metavar="OUT",
        help="write the rows that can be used to this file, and count the others",
    )


def _add_grade(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Exit codes: 0, all ground truths are correct against themselves; 1, some are not, or the "
        "file cannot be read; 2, wrong arguments."
    )
    add = parser.add_argument
    add("file", type=user_path, metavar="FILE")
    add(
        "--style",
        choices=ANSWER_STYLES,
        default="math",
        help="style of rows that name none (%(default)s)",
    )
    columns = ", ".join(PREDICTION_COLUMNS)
    add("--predictions", metavar="COLUMN", help=f"full responses (the first of {columns})")
    add("--out", type=user_path, help="write a JSON line per row")
    add("--show", type=int, default=5, help="rows to show of each kind (%(default)s)")


def _add_import(parser: argparse.ArgumentParser, **defaults: str) -> None:
    text = "parquet files, or JSON lines (.jsonl, .ndjson)"
    parser.add_argument("sources", nargs="+", type=user_path, metavar="SRC", help=text)
    add_options(parser, ImportOptions, defaults)


if __name__ == "__main__":
    sys.exit(main())
