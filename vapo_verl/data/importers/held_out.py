"""Which rows are held out for validation: seeded, and without an image on both sides."""

import hashlib

from vapo_verl.data.image_cell import image_source
from vapo_verl.data.importers.source_row import SourceRow


def is_held_out(row: SourceRow, *, fraction: float, seed: int) -> bool:
    """Draw by a hash of the row's first image (its question, if it has none) and the seed.

    All questions on one image fall to the same side, whatever the order of the rows.
    """
    if fraction == 0:
        return False
    first = image_source(row.images[0]) if row.images else row.question
    content = first if isinstance(first, bytes) else first.encode()
    digest = hashlib.blake2b(f"{seed}:".encode() + content, digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64
