"""Random numbers that depend on what they are for, never on the order in which work arrives."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleKey:
    """One response of a run."""

    seed: int
    step: int
    prompt_uid: str
    """Names the prompt across restarts of the run."""
    sample: int
    """Index of the response within its group."""

    def _entropy(self, purpose: str) -> list[int]:
        text = f"{self.seed}/{self.step}/{self.prompt_uid}/{self.sample}/{purpose}"
        digest = hashlib.sha256(text.encode()).digest()
        return [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 32, 4)]

    def generator(self, purpose: str) -> np.random.Generator:
        """A generator of its own for each purpose of this response."""
        return np.random.default_rng(self._entropy(purpose))

    def sampling_seed(self) -> int:
        """Seed of the engine's token sampling, below 2**31."""
        return self._entropy("sampling")[0] % 2**31
