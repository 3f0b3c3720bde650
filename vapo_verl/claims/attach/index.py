"""Claims by image, held small enough to join a whole data set at once."""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from vapo_verl.claims.shards import ClaimRecord, read_records
from vapo_verl.data.claims_column import Claim, normalized_text
from vapo_verl.data.errors import FileError

_decode = msgspec.msgpack.Decoder(list[tuple[str, bool]]).decode


class ClaimIndex:
    """Maps an image key to its claims.

    The claims of an image are kept as one msgpack string: 36,000 images of 20 claims take some
    60 MB this way, half of what Claim objects take. A data base on disk would save those too, at
    the price of a temporary file and a seek for each image, which pays for millions of images.
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
    """Raises FileError for a damaged shard, and when no image has enough claims."""
    if not folder.is_dir():
        raise FileError(f"CLAIMS_DIR: no folder {folder}; give the --out of `generate` or `check`")
    index = ClaimIndex(read_records(folder), min_claims=min_claims)
    if not index and index.num_short:
        found = f"none of its {index.num_short} images has {min_claims} claims"
        raise FileError(f"CLAIMS_DIR: {folder}: {found}; lower --min-claims {min_claims}")
    if not index:
        raise FileError(f"CLAIMS_DIR: {folder} has no claims; run `generate` with this --out first")
    return index
