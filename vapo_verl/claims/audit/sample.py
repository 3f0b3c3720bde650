"""Draws the images that a person judges."""

import hashlib
import heapq
from dataclasses import dataclass
from pathlib import Path

from vapo_verl.claims.images import ImageItem, iter_images
from vapo_verl.claims.shards import ClaimRecord, read_records
from vapo_verl.data.claims_column import Claim
from vapo_verl.data.errors import FileError


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditImage:
    """An image of the sample with its claims."""

    key: str
    data: bytes
    """The stored image file."""
    source: str
    """Where it is, for a person."""
    model: str
    """Made the claims."""
    claims: tuple[Claim, ...]


def draw_sample(
    claims_dir: Path, source: Path, *, column: str = "images", num_images: int, seed: int
) -> tuple[AuditImage, ...]:
    """`num_images` random images of `source` that have claims; all of them if there are fewer.

    The same seed draws the same images in the same order, whatever the order of shards and rows,
    and a larger sample holds the smaller one. Memory is that of the sample and of all image keys.

    Raises:
        FileError: no claims, no image of `source` with claims, or files that cannot be read.
    """
    known = {record.image_key for record in read_records(claims_dir) if record.claims}
    if not known:
        raise FileError(f"CLAIMS_DIR: {claims_dir} has no claims; give the --out of `generate`")
    items = _first(known, source, column, num_images, seed)
    if not items:
        found = f"no image of {source} has claims in {claims_dir}"
        raise FileError(f"SOURCE: {found}; give the images that the claims were made from")
    wanted = {item.key for item in items}
    records = {r.image_key: r for r in read_records(claims_dir) if r.image_key in wanted}
    return tuple(_audit_image(item, records[item.key]) for item in items)


def rank(seed: int, image_key: str) -> int:
    """Orders images at random: the sample is those of lowest rank."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{image_key}".encode()).digest(), "big")


def _first(
    known: set[str], source: Path, column: str, num_images: int, seed: int
) -> list[ImageItem]:
    """The images of lowest rank, lowest first; only so many are held at a time."""
    heap: list[tuple[int, ImageItem]] = []  # a heap gives its least: ranks are negated
    for item in iter_images(source, column):
        if item.key not in known:
            continue
        entry = (-rank(seed, item.key), item)
        if len(heap) < num_images:
            heapq.heappush(heap, entry)
        elif entry[0] > heap[0][0]:
            heapq.heapreplace(heap, entry)
    return [item for _, item in sorted(heap, key=lambda entry: -entry[0])]


def _audit_image(item: ImageItem, record: ClaimRecord) -> AuditImage:
    return AuditImage(
        key=item.key,
        data=item.data,
        source=item.source,
        model=record.model,
        claims=record.claims,
    )
