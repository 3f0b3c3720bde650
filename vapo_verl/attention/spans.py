"""Where a prompt's visual tokens are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

MODALITIES = ("image", "video")


def visual_spans(mm_features: Iterable[Any] | None) -> NDArray[np.int32]:
    """Half-open ranges [start, end) of prompt positions that hold image or video embeddings.

    Args:
        mm_features: a request's `MultiModalFeatureSpec`s as vLLM schedules them. Tokens of a
            placeholder that hold no embedding (markers between rows or frames) are left out.

    Returns:
        [num_spans, 2], ascending; neighbours that touch are one span. Positions belong to the
        prompt, so caching, chunking and preemption do not move them.
    """
    ranges = sorted(
        (start, last + 1)
        for feature in mm_features or ()
        if feature.modality in MODALITIES
        for start, last in feature.mm_position.extract_embeds_range()
    )
    merged: list[list[int]] = []
    for start, end in ranges:
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array(merged, dtype=np.int32).reshape(-1, 2)
