"""Quantiles of a stream of shares, from counts: the memory does not depend on the stream."""

from __future__ import annotations

import numpy as np

NUM_CELLS = 2000
"""Between 0 and 1; a quantile is off by at most half a cell, 0.00025."""


class ShareHistograms:
    """One histogram of values in [0, 1] per bin."""

    def __init__(self, num_bins: int) -> None:
        self.counts = np.zeros((num_bins, NUM_CELLS), dtype=np.int64)

    def add(self, bins: np.ndarray, values: np.ndarray) -> None:
        """Count `values` [n] in `bins` [n]; nan is left out, what lies outside is clipped."""
        known = np.isfinite(values)
        cells = np.clip((values[known] * NUM_CELLS).astype(np.int64), 0, NUM_CELLS - 1)
        np.add.at(self.counts, (bins[known], cells), 1)

    def merge_pairs(self) -> None:
        """Bins 2i and 2i + 1 become bin i; the upper half is empty after it."""
        half = len(self.counts) // 2
        self.counts[:half] = self.counts[0 : 2 * half : 2] + self.counts[1 : 2 * half : 2]
        self.counts[half:] = 0

    def sizes(self) -> np.ndarray:
        """Values in each bin."""
        return self.counts.sum(axis=1)

    def quantile(self, q: float) -> np.ndarray:
        """Of each bin [bins]: the middle of the cell of the ceil(q n)-th value; nan of none."""
        sizes = self.sizes()
        rank = np.maximum(np.ceil(q * sizes), 1)
        cell = (self.counts.cumsum(axis=1) < rank[:, None]).sum(axis=1)
        return np.where(sizes > 0, (cell + 0.5) / NUM_CELLS, np.nan)
