"""What an import is asked to do, and what it did."""

from dataclasses import dataclass
from pathlib import Path

from vapo_verl.data.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """Settings common to all importers."""

    out: Path
    """Parquet file to write; it appears only when the import is complete."""
    data_source: str
    """Name of the data set; metrics are split by it."""
    split: str = "train"
    """Recorded in extra_info.split; rows held out get "val"."""
    image_root: Path = Path()
    """Folder that relative image paths start from."""
    embed_images: bool = False
    """Write the files' bytes instead of absolute paths; sources that hold bytes keep them."""
    limit: int | None = None
    """Read at most this many source rows."""
    val_out: Path | None = None
    """File for held-out rows."""
    val_fraction: float = 0.0
    """Share of rows held out into `val_out`; rows with the same first image stay together."""
    seed: int = 0
    """Draws the held-out rows."""
    skip_bad_rows: bool = False
    """Leave out and count rows that cannot be used, instead of refusing the import."""

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise DataError(f"--val-fraction: {self.val_fraction} is outside [0, 1); try 0.02")
        if (self.val_fraction > 0) != (self.val_out is not None):
            given = f"{self.val_fraction} and {self.val_out}"
            raise DataError(f"--val-fraction and --val-out: {given}; give both or none")
        if self.val_out is not None and self.val_out.resolve() == self.out.resolve():
            raise DataError(f"--val-out: {self.val_out} is also --out; give another path")
        if self.val_out is not None and self.split == "val":
            raise DataError("--split: val is for the held-out rows; name the others differently")
        if self.limit is not None and self.limit < 1:
            raise DataError(f"--limit: {self.limit}; give at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """Counts of an import; `str()` is one line."""

    out: Path
    num_rows: int
    """Rows written to `out`."""
    num_val_rows: int
    num_claims: int
    num_blank_claims: int
    """Claims without text, dropped with their labels."""
    num_bad_rows: int
    """Rows left out under --skip-bad-rows."""

    def __str__(self) -> str:
        return (
            f"{self.out}: {self.num_rows} rows written, {self.num_val_rows} held out,"
            f" {self.num_bad_rows} bad rows skipped;"
            f" {self.num_claims} claims, {self.num_blank_claims} blank ones dropped"
        )
