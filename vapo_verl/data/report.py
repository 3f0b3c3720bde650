"""What a check of a data file counted."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """Counts over the rows of one file that can be trained on; `str()` is one line."""

    path: str
    min_claims: int
    """Rows with claims, but fewer than this, count as short of claims."""
    num_rows: int
    num_images: int
    num_images_opened: int
    """Images opened and found readable; remote ones, and those over the limit, are not opened."""
    num_claims: int
    num_true_claims: int
    rows_without_images: int
    rows_without_claims: int
    """These get the plain reward."""
    rows_short_of_claims: int
    rows_unbalanced: int
    """Rows whose share of true claims is outside BALANCED_SHARE."""
    rows_with_duplicate_claims: int
    rows_with_contradiction: int
    """Rows where the same claim is labelled both true and false."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """One phrase for each thing that is allowed, but worth a look."""
        counted = (
            (self.rows_without_images, "without images"),
            (self.rows_without_claims, "without claims"),
            (self.rows_short_of_claims, f"with fewer than {self.min_claims} claims"),
            (self.rows_unbalanced, "with unbalanced claims"),
            (self.rows_with_duplicate_claims, "with duplicate claims"),
            (self.rows_with_contradiction, "with a claim labelled both true and false"),
        )
        return tuple(f"{_rows(count)} {what}" for count, what in counted if count)

    def __str__(self) -> str:
        share = f" ({self.num_true_claims / self.num_claims:.1%} true)" if self.num_claims else ""
        counts = (
            f"{self.path}: {_rows(self.num_rows)}, {self.num_images} images"
            f" ({self.num_images_opened} opened), {self.num_claims} claims{share}"
        )
        return f"{counts}; warnings: {', '.join(self.warnings)}" if self.warnings else counts


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"
