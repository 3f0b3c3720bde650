"""Settings of the capture: the visual-attention part of vLLM's `additional_config`."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from vapo_verl.config import DEFAULT_MAX_SPANS, MAX_SPANS

KEY = "visual_attention"
"""Key in vLLM's `additional_config`, and name of the request argument."""

MAX_LAYERS = 10_000
SPREAD_EVERY = 8
"""The default subset has one of this many layers, at least 2: the cost grows with their number."""

Layers = Literal["spread", "all"] | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one engine.

    Raises:
        ValueError: a value out of its range; names the key, the value and the fix.
    """

    layers: Layers = "spread"
    """Decoder layers by index. ``spread``: one in 8, at least two, evenly spaced; ``all``:
    every one."""
    per_layer: bool = False
    """Export [T, layers] in ascending order of the layers in place of their mean [T]."""
    on_request: bool = False
    """Export only for requests with ``SamplingParams(extra_args={"visual_attention": True})``
    (``vllm_xargs`` over HTTP). Otherwise for every request."""
    max_spans: int = DEFAULT_MAX_SPANS
    """Runs of visual tokens a prompt may have; with more its values are nan. An image is one run,
    a video one or, for Qwen3-VL, one per pair of frames."""

    def __post_init__(self) -> None:
        if isinstance(self.layers, str):
            if self.layers not in ("spread", "all"):
                raise ValueError(
                    f"{KEY}.layers={self.layers!r}: use 'spread', 'all' or a list of layer indices"
                )
        elif (
            not self.layers
            or len(set(self.layers)) < len(self.layers)
            or not 0 <= min(self.layers) <= max(self.layers) < MAX_LAYERS
        ):
            raise ValueError(
                f"{KEY}.layers={_short(self.layers)}: give distinct layer indices, counted from 0"
            )
        for name in ("per_layer", "on_request"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{KEY}.{name}={value!r} is a {type(value).__name__}: use a bool")
        if type(self.max_spans) is not int:
            raise ValueError(f"{KEY}.max_spans={self.max_spans!r} is no whole number")
        if self.max_spans < 1:
            raise ValueError(f"{KEY}.max_spans={self.max_spans} must be at least 1")
        if self.max_spans > MAX_SPANS:  # the engine keeps as many pairs for each of its requests
            raise ValueError(f"{KEY}.max_spans is above {MAX_SPANS}: no prompt has so many images")

    @classmethod
    def from_additional_config(cls, additional_config: dict[str, Any] | None) -> Settings:
        """Settings out of a vLLM config's `additional_config`.

        Raises:
            ValueError: it has no `visual_attention`, or one with unknown keys.
        """
        values = (additional_config or {}).get(KEY)
        if values is None:
            raise ValueError(
                f"additional_config has no {KEY!r}, which its worker and scheduler read: "
                "start the engine with all of vapo_verl.attention.engine_args(), and give a config "
                "of your own to it: engine_args(additional_config=...)"
            )
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(
                f"additional_config.{KEY} has unknown keys {unknown}: known are {known}"
            )
        return cls(**{**values, "layers": as_layers(values.get("layers"))})

    def to_additional_config(self) -> dict[str, Any]:
        """The JSON value to put under `additional_config`, with the layers as a list."""
        layers = self.layers if isinstance(self.layers, str) else list(self.layers)
        return {KEY: {**asdict(self), "layers": layers}}

    def select(self, available: Sequence[int]) -> list[int]:
        """The layers to capture, ascending, out of a model's attention layers.

        Raises:
            ValueError: a layer of the list is not one of them.
        """
        if self.layers == "all":
            return sorted(available)
        if self.layers == "spread":
            return spread(sorted(available))
        missing = sorted(set(self.layers) - set(available))
        if missing:
            raise ValueError(
                f"{KEY}.layers={list(self.layers)}: the model has no attention layer {missing}; "
                f"it has {sorted(available)}"
            )
        return sorted(self.layers)


def as_layers(layers: str | Sequence[int] | None) -> Layers:
    """The value as :data:`Layers`; None is the default."""
    if layers is None:
        return "spread"
    if isinstance(layers, str):
        return layers  # type: ignore[return-value]  # checked by Settings
    indices = tuple(layers)
    if any(isinstance(x, bool) or not isinstance(x, numbers.Integral) for x in indices):
        raise ValueError(f"{KEY}.layers={_short(indices)}: an index is a whole number")
    return tuple(int(x) for x in indices)


def _short(layers: Sequence[Any]) -> str:
    shown = [repr(x) if not isinstance(x, int) or abs(x) < 10**9 else "..." for x in layers[:8]]
    return f"[{', '.join(shown)}{', ...' if len(layers) > len(shown) else ''}]"


def spread(layers: list[int]) -> list[int]:
    """One layer in 8, in the middles of equal parts: of 28 layers those at 3, 10, 17 and 24."""
    total = len(layers)
    number = max(2, round(total / SPREAD_EVERY))
    if total <= number:
        return layers
    return [layers[(2 * i + 1) * total // (2 * number)] for i in range(number)]
