"""Joins claims to rows, and counts what came of it."""

from collections import Counter
from pathlib import Path

from vapo_verl.claims.attach.index import ClaimIndex
from vapo_verl.claims.attach.options import AttachOptions
from vapo_verl.claims.attach.report import AttachReport
from vapo_verl.claims.attach.row import join_claims
from vapo_verl.claims.images import cell_bytes, image_key
from vapo_verl.data.claims_column import Claim, read_claims
from vapo_verl.data.image_cell import image_source, is_remote

_NUM_SHOWN = 5
_WORKING_DIRECTORY = Path()
"""Where relative image paths start, as in training."""


class ClaimJoin:
    """Gives row after row its claims; constant memory next to the index."""

    def __init__(self, index: ClaimIndex, options: AttachOptions):
        self._index, self._options = index, options
        self._count: Counter[str] = Counter()
        self._first_without: list[int] = []
        self._fewest, self._most = 0, 0

    @property
    def num_rows_joined(self) -> int:
        return self._count["num_rows_joined"]

    def claims_of(self, number: int, images_cell: object, claims_cell: object) -> tuple[Claim, ...]:
        """The claims that row `number` is to have; () for none.

        Raises:
            BadCell: an image that cannot be read, or old claims that are no claims.
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
        return self._index.get(image_key(cell_bytes(cell, _WORKING_DIRECTORY)))

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
