"""What a person can ask of `attach`."""

from dataclasses import dataclass, field
from pathlib import Path

from vapo_verl.cli_options import cli
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
