"""`attach`: join claims to the rows of a training file by their images.

The claims of a folder go into the `claims` column of a copy of TRAIN; all other columns stay as
they are. An image is known by the SHA-256 of its stored file: a renamed file keeps its claims, an
image that was encoded anew loses them.
"""

import argparse
from dataclasses import fields
from pathlib import Path

from vapo_verl.claims.attach.attach_options import AttachOptions

_DEFAULT = {field.name: field.default for field in fields(AttachOptions)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("claims_dir", type=Path, metavar="CLAIMS_DIR", help="left by generate or check")
    add("train", type=Path, metavar="TRAIN", help="parquet file with images")
    add("--out", type=Path, required=True, metavar="OUT.parquet")
    add("--column", default=_DEFAULT["column"], help="where the images are (%(default)s)")
    add(
        "--min-claims",
        type=int,
        default=_DEFAULT["min_claims"],
        metavar="N",
        help="an image with fewer counts as one without claims (%(default)s)",
    )
    add("--drop-uncovered", action="store_true", help="leave out rows that end without claims")
    add(
        "--single-image-only",
        action="store_true",
        help="no claims for rows of several images; else they say 'In image 2, ...'",
    )
    add(
        "--replace",
        action="store_true",
        help="TRAIN has claims: put new ones in their place; rows not covered keep theirs",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print the coverage; errors as `attach_claims`."""
    from vapo_verl.claims.attach.files import attach_claims  # pyarrow is slow to import

    given = {name: getattr(arguments, name) for name in _DEFAULT}
    print(attach_claims(AttachOptions(**given)))
    return 0
