"""`attach`: join claims to the rows of a training file by their images.

The claims of a folder go into the `claims` column of a copy of TRAIN; all other columns stay as
they are. An image is known by the SHA-256 of its stored file: a renamed file keeps its claims, an
image that was encoded again loses them.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from vapo_verl.cli_options import add_options, cli, options_from
from vapo_verl.data.errors import FileError


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachOptions:
    """One run: its files, and which rows get claims."""

    claims_dir: Path = field(metadata=cli(positional="CLAIMS_DIR"))
    """Left by generate or check."""
    train: Path = field(metadata=cli(positional="TRAIN"))
    """Parquet file with images."""
    out: Path = field(metadata=cli(metavar="OUT.parquet"))
    column: str = "images"
    """Of the images, a list of them a row, or one."""
    min_claims: int = field(default=1, metadata=cli(metavar="N"))
    """An image with fewer claims counts as one without."""
    drop_uncovered: bool = False
    """Leave out the rows that end without claims."""
    single_image_only: bool = False
    """Rows of several images get no claims; else they say 'In image 2, ...'."""
    replace: bool = False
    """Rows that have claims get the new ones; those that are not covered keep theirs."""

    def __post_init__(self) -> None:
        if self.min_claims < 1:
            raise ValueError(f"--min-claims is {self.min_claims}, want at least 1")
        if self.out.suffix != ".parquet":
            raise FileError(f"--out: {self.out} does not end in .parquet; veRL goes by that")
        if self.out.exists() and self.train.exists() and self.out.samefile(self.train):
            raise FileError(f"--out: {self.out} is TRAIN itself; give another path")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, AttachOptions)


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print the coverage; errors as `attach_claims`."""
    from vapo_verl.claims.attach.files import attach_claims  # pyarrow is slow to import

    print(attach_claims(options_from(AttachOptions, arguments)))
    return 0
