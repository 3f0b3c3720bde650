"""The responses that the report shows in full: a seeded, bounded sample, half correct."""

import hashlib
import heapq
import math
from dataclasses import asdict, dataclass, replace
from typing import Generic, TypeVar

from vapo_verl.run_folder.images import image_uri
from vapo_verl.run_folder.rollouts import RewardParts, Rollout, RolloutAnchor

MAX_TOKENS = 4096
"""Tokens shown of one response."""
MAX_PROMPT_CHARACTERS = 8000
DIGITS = 4
"""Decimals of an attention ratio or a probability on the page."""
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownResponse:
    """One response, as the page holds it. All texts are untrusted."""

    step: int | None
    uid: str
    sample: int | None
    data_source: str
    index: int | None
    prompt: str
    tokens: list[str]
    num_tokens: int
    """Of the full response; more than `tokens` holds if it was cut."""
    attention: list[float | None]
    """One per shown token; empty if not exported."""
    ground_truth: str
    correct: bool | None
    reward: RewardParts
    anchors: list[RolloutAnchor]
    images: list[str]
    """``data:`` addresses of the prompt's images that could be read."""


class ExplorerSamples:
    """At most `size` responses of a run, half of them correct, drawn by `seed`."""

    def __init__(self, size: int, seed: int) -> None:
        sizes = {True: size // 2, False: size - size // 2}
        self._kept = {
            correct: BoundedSample[ShownResponse](part, seed) for correct, part in sizes.items()
        }
        self.num_seen = {True: 0, False: 0}

    def add(self, rollout: Rollout) -> None:
        """Count one response and keep it if it is drawn."""
        correct = bool(_is_correct(rollout.reward))
        self.num_seen[correct] += 1
        row = (rollout.step, rollout.uid, rollout.sample, rollout.data_source, rollout.index)
        key = "\t".join(map(str, row))
        kept = self._kept[correct]
        if kept.admits(key):
            kept.put(key, shown_response(rollout))

    def responses(self) -> list[ShownResponse]:
        """By step, then by prompt and sample."""
        kept = [response for part in self._kept.values() for _, response in part.items()]
        return sorted(kept, key=lambda r: (r.step or 0, r.uid, r.sample or 0))


def shown_response(rollout: Rollout) -> ShownResponse:
    """The page's view of one row; a column that the file lacks stays empty."""
    tokens = rollout.tokens or [rollout.response]
    attention, reward = rollout.attention(), rollout.reward
    known = len(attention) == len(tokens) and any(map(math.isfinite, attention))
    return ShownResponse(
        step=rollout.step,
        uid=rollout.uid,
        sample=rollout.sample,
        data_source=rollout.data_source,
        index=rollout.index,
        prompt=rollout.prompt[:MAX_PROMPT_CHARACTERS],
        tokens=tokens[:MAX_TOKENS],
        num_tokens=len(tokens),
        attention=[_rounded(value) for value in attention[:MAX_TOKENS]] if known else [],
        ground_truth=rollout.ground_truth,
        correct=_is_correct(reward),
        reward=RewardParts(**{part: _rounded(value) for part, value in asdict(reward).items()}),
        anchors=[replace(anchor, p_yes=_rounded(anchor.p_yes)) for anchor in rollout.anchors],
        images=[uri for image in rollout.images if (uri := image_uri(image))],
    )


def _is_correct(reward: RewardParts) -> bool | None:
    accuracy = reward.accuracy
    return None if accuracy is None or math.isnan(accuracy) else accuracy >= 1


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), DIGITS)


class BoundedSample(Generic[Value]):
    """Keeps the values of the `size` keys whose hash is smallest.

    Every key has the same chance, whatever its position in the stream. Two samples with the same
    seed prefer the same keys, so common keys of two runs stay common. An evicted key is never
    readmitted, so a multi-part value is either complete or missing.
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
        """Whether `put` would keep the key; call it first if the value is expensive."""
        if key in self._values or len(self._values) < self._size:
            return True
        return self._size > 0 and self._rank(key) < -self._largest_first[0][0]

    def put(self, key: str, value: Value) -> None:
        """Keep `value`, drop it, or evict another for it."""
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
