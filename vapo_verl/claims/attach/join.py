"""Join claims to rows by image, and count the results."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vapo_verl.claims.images import cell_bytes, image_key
from vapo_verl.claims.options import AttachOptions
from vapo_verl.claims.shards import ClaimRecord, unique_records
from vapo_verl.data.cells import check_claim_text
from vapo_verl.data.claims_column import Claim, normalized_text, read_claims
from vapo_verl.data.errors import BadCell, FileError, number_of
from vapo_verl.data.images import image_source, is_remote

_decode = msgspec.msgpack.Decoder(list[tuple[str, bool]]).decode
_NUM_SHOWN = 5
_LOWERED = ("A", "All", "An", "At", "Both", "Each", "In", "It", "No", "On", "One", "The", "There")
"""First words that are lowercased after "In image 2,"; any other word may be a name."""


class ClaimIndex:
    """Maps an image key to its claims.

    The claims of an image are stored as one msgpack string: 36,000 images with 20 claims each take
    about 60 MB, half as much as Claim objects. A database on disk would save this memory too, at
    the cost of a temporary file and a seek per image, which pays off only for millions of images.
    """

    def __init__(self, records: Iterable[ClaimRecord], *, min_claims: int = 1):
        """Pack the claims of all records.

        Args:
            min_claims: images with fewer claims are left out, and counted in `num_short`.
        """
        self.num_short = 0
        self._packed: dict[str, bytes] = {}
        for record in records:
            claims = record.claims
            if len(claims) < max(min_claims, 1):
                self.num_short += 1
            else:
                pairs = [(normalized_text(claim.text), claim.label) for claim in claims]
                self._packed[record.image_key] = msgspec.msgpack.encode(pairs)

    def __len__(self) -> int:
        return len(self._packed)

    def get(self, image_key: str) -> tuple[Claim, ...] | None:
        """The claims of an image, in their stored order; None when it has none."""
        packed = self._packed.get(image_key)
        return None if packed is None else tuple(Claim(*pair) for pair in _decode(packed))


def read_index(folder: Path, *, min_claims: int) -> ClaimIndex:
    """The claims of a folder.

    Raises:
        FileError: a damaged shard, an image with two lines, a claim that `data check` would refuse,
            or no image has enough claims.
    """
    if not folder.is_dir():
        raise FileError(f"CLAIMS_DIR: no folder {folder}; give the --out of `generate` or `check`")
    index = ClaimIndex(_checked_records(folder), min_claims=min_claims)
    if not index and index.num_short:
        wanted, fix = f"{min_claims} claims", f"lower --min-claims {min_claims}"
        if min_claims == 1:
            wanted = "a claim left"
            fix = "give the folder of `generate`, or let another model `check` it"
        found = f"none of its {index.num_short} images has {wanted}"
        raise FileError(f"CLAIMS_DIR: {folder}: {found}; {fix}")
    if not index:
        raise FileError(f"CLAIMS_DIR: {folder} has no claims; run `generate` with this --out first")
    return index


def _checked_records(folder: Path) -> Iterator[ClaimRecord]:
    for path, line, _, record in unique_records(folder):
        for claim in record.claims:
            try:
                check_claim_text(normalized_text(claim.text))
            except BadCell as bad:
                found = f"image {record.image_key}: {bad.found}"
                fix = "reword the claim, or delete it"
                raise FileError(f"CLAIMS_DIR: {path}:{line}, {found}; {fix}") from bad
        yield record


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachReport:
    """Counts over the rows of the training file; `str()` formats them for the user."""

    out: Path
    num_rows: int
    """Rows read; `num_rows_dropped` of them are not written."""
    num_rows_dropped: int
    num_rows_joined: int
    """Rows that got claims from the folder."""
    num_rows_replaced: int
    """Joined rows that had claims before."""
    num_rows_kept: int
    """Uncovered rows that kept their old claims."""
    num_rows_without_images: int
    num_rows_multi_image_skipped: int
    """Rows of several images left without claims by `--single-image-only`."""
    num_rows_without_claims: int
    first_rows_without_claims: tuple[int, ...]
    """Numbers of the first few such rows, from 0."""
    num_images: int
    num_images_unknown: int
    """Images without claims in the folder (or with too few), counted per row."""
    num_images_remote: int
    """Unknown images given as an address; their bytes are not fetched."""
    num_records: int
    """Images with claims in the folder."""
    num_records_short: int
    """Images in the folder with fewer claims than asked for; they count as unknown."""
    min_claims: int
    num_claims: int
    """Claims in all rows written."""
    num_true_claims: int
    fewest_claims: int
    """Over the written rows that have claims."""
    most_claims: int
    """Over the same rows."""

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
            f"{self.out}: {number_of(self.num_rows - self.num_rows_dropped, 'row')} written,"
            f" {_part_of(self.num_rows_with_claims, self.num_rows)} with claims{_listed(notes)}"
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
        rows = number_of(self.num_rows_without_claims, "row")
        return f"{rows} without claims: {shown}{more}{_listed(notes)}"

    def _claims(self) -> str:
        num_rows = self.num_rows_with_claims
        return (
            f"claims per row with claims: min {self.fewest_claims},"
            f" mean {self.num_claims / num_rows:.1f}, max {self.most_claims};"
            f" {_part_of(self.num_true_claims, self.num_claims)} true"
        )


class ClaimJoin:
    """Looks up the claims of each row; beyond the index, memory is constant."""

    def __init__(self, index: ClaimIndex, options: AttachOptions):
        self._index, self._options = index, options
        self._count: Counter[str] = Counter()
        self._first_without: list[int] = []
        self._fewest, self._most = 0, 0

    @property
    def num_rows(self) -> int:
        """Rows read so far."""
        return self._count["num_rows"]

    @property
    def num_rows_joined(self) -> int:
        return self._count["num_rows_joined"]

    def claims_of(self, number: int, images_cell: object, claims_cell: object) -> tuple[Claim, ...]:
        """The claims of row `number` in the output; () for none.

        Raises:
            BadCell: an image cannot be read, or the old claims are invalid.
        """
        old = read_claims(claims_cell)
        claims = self._joined(images_cell)
        self._count.update(num_rows=1, num_rows_joined=bool(claims))
        if old:
            self._count["num_rows_replaced" if claims else "num_rows_kept"] += 1
        claims = claims or old
        self._count_claims(number, claims)
        return claims

    def _joined(self, images_cell: object) -> tuple[Claim, ...]:
        cells = images_cell if isinstance(images_cell, list) else [images_cell]
        found = [self._look_up(cell) for cell in cells if cell is not None]
        self._count.update(num_images=len(found), num_images_unknown=found.count(None))
        self._count["num_rows_without_images"] += not found
        if len(found) > 1 and self._options.single_image_only:
            self._count["num_rows_multi_image_skipped"] += 1
        return join_claims(found, single_image_only=self._options.single_image_only)

    def _look_up(self, cell: object) -> tuple[Claim, ...] | None:
        source = image_source(cell)
        if is_remote(source):
            self._count["num_images_remote"] += 1
            return None
        return self._index.get(image_key(cell_bytes(cell, self._options.image_root)))

    def _count_claims(self, number: int, claims: tuple[Claim, ...]) -> None:
        if not claims:
            self._count["num_rows_without_claims"] += 1
            if len(self._first_without) < _NUM_SHOWN:
                self._first_without.append(number)
            return
        num_true = sum(claim.label for claim in claims)
        self._count.update(num_claims=len(claims), num_true_claims=num_true)
        self._fewest = min(self._fewest or len(claims), len(claims))
        self._most = max(self._most, len(claims))

    def report(self) -> AttachReport:
        count = self._count
        dropped = count["num_rows_without_claims"] if self._options.drop_uncovered else 0
        return AttachReport(
            out=self._options.out,
            num_rows=count["num_rows"],
            num_rows_dropped=dropped,
            num_rows_joined=count["num_rows_joined"],
            num_rows_replaced=count["num_rows_replaced"],
            num_rows_kept=count["num_rows_kept"],
            num_rows_without_images=count["num_rows_without_images"],
            num_rows_multi_image_skipped=count["num_rows_multi_image_skipped"],
            num_rows_without_claims=count["num_rows_without_claims"],
            first_rows_without_claims=tuple(self._first_without),
            num_images=count["num_images"],
            num_images_unknown=count["num_images_unknown"],
            num_images_remote=count["num_images_remote"],
            num_records=len(self._index),
            num_records_short=self._index.num_short,
            min_claims=self._options.min_claims,
            num_claims=count["num_claims"],
            num_true_claims=count["num_true_claims"],
            fewest_claims=self._fewest,
            most_claims=self._most,
        )


def _part_of(part: int, total: int) -> str:
    return f"{part} of {total} ({part / total:.1%})"


def _listed(notes: tuple[tuple[int, str, str], ...]) -> str:
    """The notes with a nonzero count, as ` (3 rows with this, 1 image of that)`."""
    text = ", ".join(f"{number_of(count, noun)} {what}" for count, noun, what in notes if count)
    return f" ({text})" if text else ""


def join_claims(
    claims_by_image: Sequence[tuple[Claim, ...] | None], *, single_image_only: bool = False
) -> tuple[Claim, ...]:
    """The claims of a row, in the order of its images; () for none.

    Each claim was made from one image, so "the car is red" is ambiguous in a row with several
    images: there each claim names its image. Partly covered rows get no claims, because the policy
    would learn which images are asked about.

    Args:
        claims_by_image: the claims of each image; None for an image without claims.
        single_image_only: rows of several images get none.
    """
    if len(claims_by_image) > 1 and single_image_only:
        return ()
    known = [claims for claims in claims_by_image if claims]
    if len(known) < len(claims_by_image):
        return ()
    if len(known) == 1:
        return known[0]
    return tuple(
        Claim(about_image(number, claim.text), claim.label)
        for number, claims in enumerate(known, start=1)
        for claim in claims
    )


def about_image(number: int, text: str) -> str:
    """`text` as a statement about image `number` of a row, counted from 1.

    >>> about_image(2, "The car is red.")
    'In image 2, the car is red.'
    """
    first, *rest = text.split(maxsplit=1)
    return " ".join((f"In image {number},", first.lower() if first in _LOWERED else first, *rest))
