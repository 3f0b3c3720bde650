"""What joining claims to a training file counted."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachReport:
    """Counts over the rows of the training file; `str()` is some lines for a person."""

    out: Path
    num_rows: int
    """Rows read; those written are fewer by `num_rows_dropped`."""
    num_rows_dropped: int
    num_rows_joined: int
    """Rows that got claims from the folder."""
    num_rows_replaced: int
    """Of the joined rows, those that had claims before."""
    num_rows_kept: int
    """Rows that were not covered and kept the claims that they had."""
    num_rows_without_images: int
    num_rows_multi_image_skipped: int
    """Rows of several images left without claims by `--single-image-only`."""
    num_rows_without_claims: int
    first_rows_without_claims: tuple[int, ...]
    """Numbers of the first few of them, from 0."""
    num_images: int
    num_images_unknown: int
    """Images, counted once a row, that have no claims in the folder (or too few)."""
    num_images_remote: int
    """Of the unknown images, those behind an address: their bytes are not fetched."""
    num_records: int
    """Images with claims in the folder."""
    num_records_short: int
    """Images in the folder with fewer claims than asked for; they count as unknown."""
    min_claims: int
    num_claims: int
    """Claims in all rows written."""
    num_true_claims: int
    fewest_claims: int
    """Over the written rows that have claims; so are the next two."""
    most_claims: int

    @property
    def num_rows_with_claims(self) -> int:
        return self.num_rows_joined + self.num_rows_kept

    def __str__(self) -> str:
        return "\n".join(filter(None, (self._rows(), self._missing(), self._claims())))

    def _rows(self) -> str:
        notes = (
            (self.num_rows_replaced, "row", "had claims that were replaced"),
            (self.num_rows_kept, "row", "without new claims kept the old"),
            (self.num_rows_dropped, "row", "without claims left out"),
        )
        return (
            f"{self.out}: {_counted(self.num_rows - self.num_rows_dropped, 'row')} written,"
            f" {_share(self.num_rows_with_claims, self.num_rows)} with claims{_listed(notes)}"
        )

    def _missing(self) -> str:
        """Why rows have no claims; empty when all have."""
        if not self.num_rows_without_claims:
            return ""
        shown = ", ".join(map(str, self.first_rows_without_claims))
        more = ", ..." if self.num_rows_without_claims > len(self.first_rows_without_claims) else ""
        notes = (
            (self.num_rows_without_images, "row", "without an image"),
            (self.num_rows_multi_image_skipped, "row", "of several images skipped"),
            (self.num_images_unknown, "image", f"of {self.num_images} without claims"),
            (self.num_images_remote, "image", "behind an address, not fetched"),
            (self.num_records_short, "record", f"of under {self.min_claims} claims passed over"),
        )
        rows = _counted(self.num_rows_without_claims, "row")
        return f"{rows} without claims: {shown}{more}{_listed(notes)}"

    def _claims(self) -> str:
        num_rows = self.num_rows_with_claims
        return (
            f"claims per row with claims: min {self.fewest_claims},"
            f" mean {self.num_claims / num_rows:.1f}, max {self.most_claims};"
            f" {_share(self.num_true_claims, self.num_claims)} true"
        )


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.1%})"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _listed(notes: tuple[tuple[int, str, str], ...]) -> str:
    """The notes that count something, as ` (3 rows with this, 1 image of that)`."""
    text = ", ".join(f"{_counted(count, noun)} {what}" for count, noun, what in notes if count)
    return f" ({text})" if text else ""
