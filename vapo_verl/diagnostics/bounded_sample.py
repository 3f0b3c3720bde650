"""A seeded sample of bounded size from a stream of unknown length."""

from __future__ import annotations

import hashlib
import heapq
from typing import Generic, TypeVar

Value = TypeVar("Value")


class BoundedSample(Generic[Value]):
    """Keeps the values of the `size` keys whose hash is smallest.

    Every key has the same chance, whatever its place in the stream. Two samples with the same seed
    prefer the same keys, so what two runs have in common stays in common. A key that was turned out
    is never let in again: a value that several additions make up is whole or absent.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self._size, self._seed = size, seed
        self._values: dict[str, Value] = {}
        self._largest_first: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Value | None:
        return self._values.get(key)

    def admits(self, key: str) -> bool:
        """Whether `put` would keep the key; asked first where making the value costs something."""
        if key in self._values or len(self._values) < self._size:
            return True
        return self._size > 0 and self._rank(key) < -self._largest_first[0][0]

    def put(self, key: str, value: Value) -> None:
        """Keep `value`, or drop it, or drop another for it."""
        if not self.admits(key):
            return
        if key not in self._values:
            heapq.heappush(self._largest_first, (-self._rank(key), key))
        self._values[key] = value
        if len(self._values) > self._size:
            del self._values[heapq.heappop(self._largest_first)[1]]

    def items(self) -> list[tuple[str, Value]]:
        """Kept keys and values, ordered by key."""
        return sorted(self._values.items(), key=lambda item: item[0])

    def _rank(self, key: str) -> int:
        digest = hashlib.blake2b(f"{self._seed}:{key}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")
