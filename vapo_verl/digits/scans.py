"""Handwritten digit scans and their fixed split into disjoint train, val and test pools."""

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SPLITS = ("train", "val", "test")
_SHARES = {"train": 0.7, "val": 0.1}
_SPLIT_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanPool:
    """The scans one split may draw from, grouped by the digit they show."""

    by_digit: tuple[tuple[int, ...], ...]
    """Ten tuples of scan numbers, one per digit class 0..9."""

    def sample(self, rng: random.Random) -> tuple[int, int]:
        """Draw a (digit, scan number) pair: digits uniformly, then one of the digit's scans."""
        digit = rng.randrange(10)
        return digit, rng.choice(self.by_digit[digit])


@lru_cache(maxsize=1)
def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """Return all scans (float [1797, 8, 8], ink in 0..1) and the digits they show (int [1797])."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images / 16.0, data.target


@lru_cache(maxsize=len(SPLITS))
def scan_pool(split: str) -> ScanPool:
    """Return the scans of a split: 70 % train, 10 % val, the rest test, within every digit class.

    The split does not depend on a data set's seed, so a test scan is unseen whatever seed made the
    training rows.

    Raises:
        ValueError: the split is not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; use one of {', '.join(SPLITS)}")
    _, digits = load_scans()
    return ScanPool(by_digit=tuple(_class_share(split, digits, digit) for digit in range(10)))


def _class_share(split: str, digits: np.ndarray, digit: int) -> tuple[int, ...]:
    scans = np.flatnonzero(digits == digit).tolist()
    random.Random(f"{_SPLIT_SEED}/{digit}").shuffle(scans)
    train_end = round(len(scans) * _SHARES["train"])
    val_end = train_end + round(len(scans) * _SHARES["val"])
    bounds = {"train": (0, train_end), "val": (train_end, val_end), "test": (val_end, len(scans))}
    start, end = bounds[split]
    return tuple(scans[start:end])
