"""Tells whether a model or a data file is still the one that a folder of results was begun with."""

from __future__ import annotations

import hashlib
from pathlib import Path

_END_BYTES = 2**20
_FOOTER_LENGTH_BYTES = 8
"""Of the length and the magic that end a parquet file."""


def model_fingerprint(model: str) -> str:
    """A folder's name, and a digest of its config and of the sizes and both ends of its weights.

    The first and the last MiB of each file are read, not all of it. A name on the hub stays as it
    is. The folder may be moved.
    """
    folder = Path(model)
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("config.json"), *folder.glob("*.safetensors")]):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_END_BYTES))
            file.seek(max(size - _END_BYTES, 0))
            digest.update(file.read())
    return f"{folder.resolve().name} {digest.hexdigest()[:16]}"


def parquet_fingerprint(path: Path) -> str:
    """A parquet file's name, and a digest of its size and footer, which describes all columns."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - _FOOTER_LENGTH_BYTES, 0))
        footer = int.from_bytes(file.read(4), "little")
        file.seek(max(size - _FOOTER_LENGTH_BYTES - footer, 0))
        digest = hashlib.sha256(f"{size}\n".encode() + file.read())
    return f"{path.name} {digest.hexdigest()[:16]}"
