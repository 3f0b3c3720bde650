"""Checksums of files, by xxh3_128: some GB/s a core. They detect damage and changes, no attack."""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import xxhash

ALGORITHM = "xxh3_128"
WEIGHT_BLOCKS = 1024
"""Blocks of a file of weights that tell it from another one: 16 MiB."""
_BLOCK_BYTES = 2**14
_BUFFER_BYTES = 2**22


def file_checksum(path: Path, num_blocks: int | None = None) -> str:
    """The checksum in hexadecimal digits, as ``xxhsum -H2`` prints it.

    Args:
        num_blocks: read only this many blocks of 16 KiB at even distances, the first and the last
            one included; None: the whole file, as a smaller file always is.
    """
    digest = xxhash.xxh3_128()
    for piece in _pieces(path, num_blocks):
        digest.update(piece)
    return digest.hexdigest()


def cached_checksum(path: Path, num_blocks: int | None = None) -> str:
    """:func:`file_checksum`; a process reads a file again only once its size or time changed.

    Large files of weights need no more than :data:`WEIGHT_BLOCKS`: training changes all tensors.
    """
    found = path.stat()
    return _checksum(path, num_blocks, found.st_size, found.st_mtime_ns, found.st_ino)


@lru_cache(maxsize=1024)
def _checksum(path: Path, num_blocks: int | None, *_stat: int) -> str:
    return file_checksum(path, num_blocks)


def _pieces(path: Path, num_blocks: int | None) -> Iterator[memoryview]:
    """What is read of a file. A piece is valid until the next one is taken."""
    block = memoryview(bytearray(_BUFFER_BYTES))
    with path.open("rb", buffering=0) as file:
        last = os.fstat(file.fileno()).st_size - _BLOCK_BYTES
        if num_blocks is None or last < (num_blocks - 1) * _BLOCK_BYTES:
            while num_read := file.readinto(block):
                yield block[:num_read]
            return
        for i in range(num_blocks):
            file.seek(last * i // (num_blocks - 1))
            yield block[: file.readinto(block[:_BLOCK_BYTES])]
