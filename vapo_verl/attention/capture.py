"""One worker's capture: image spans of the batch in, visual attention ratio of its rows out.

Calls of an engine step in vLLM 0.24 (V1 model runner):

    worker.execute_model   begin_step: spans of new requests
      runner               fixes the order of the batch's rows
      builder.build        begin_forward: spans of the rows, in that order
      layer by layer       the recording implementation writes ratio[slot, row]
    worker                 end_forward: mean over layers
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vapo_verl.attention.backends.recording import RecordingBuilder, RecordingImpl
from vapo_verl.attention.settings import Settings
from vapo_verl.console import say

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


logger = logging.getLogger("vllm.vapo_verl.attention")

_NO_SPANS_KNOWN = np.full((1, 2), -1, dtype=np.int32)
"""Replaces a request's spans: kernels return nan for a row with a negative span."""
NUM_STEPS = 32
"""Number of decode steps that are timed."""
MODALITIES = ("image", "video")


class Capture:
    """Buffers shared by the scheduler's view of a batch and the layers that record it.

    Args:
        layers: implementation of every decoder attention layer by its index.
        max_rows: the most rows a forward can have, padding included.
        dtype: of the model and its KV cache.
        row_ids: gives the request ids of the batch, in the order of its rows.
    """

    def __init__(
        self,
        settings: Settings,
        layers: Mapping[int, Any],
        max_rows: int,
        dtype: torch.dtype,
        device: torch.device,
        row_ids: Callable[[], list[str]],
    ) -> None:
        self.settings = settings
        if not layers:
            raise ValueError(
                "the model has no decoder layer of plain softmax attention over its full context: "
                "visual attention cannot be captured; leave it off"
            )
        self.layer_indices = settings.select(list(layers))
        for slot, index in enumerate(self.layer_indices):
            impl = layers[index]
            if not isinstance(impl, RecordingImpl):
                raise ValueError(
                    f"layer {index} runs {type(impl).__name__}, which does not record visual "
                    "attention: choose another attention backend or other layers"
                )
            impl.check_recordable(dtype)
            impl.capture, impl.slot = self, slot
        self.ratio = torch.zeros(len(self.layer_indices), max_rows, device=device)
        """float32 [captured layers, rows]: what the layers write."""
        shape = (max_rows, settings.max_spans, 2)
        on_gpu = device.type == "cuda"
        self._spans_host = torch.zeros(shape, dtype=torch.int32, pin_memory=on_gpu)
        self.spans = (
            torch.zeros_like(self._spans_host, device=device) if on_gpu else self._spans_host
        )
        """int32 [rows, max_spans, 2]: visual spans of the batch's rows; unused ones are (0, 0)."""
        self.clock = OverheadMeter(self._report_overhead)
        self.num_without_answer = 0
        """Requests so far with more spans than `max_spans`: their values are nan."""
        self._num_layers = len(layers)
        self._row_ids = row_ids
        self._requests: dict[str, NDArray[np.int32]] = {}
        self._shown: list[str] | None = None
        self._num_rows = 0
        self._live = False

    def bind(self, builders: Iterable[Any]) -> None:
        """Let the metadata builders of the KV cache groups announce each forward."""
        bound = [b for b in builders if isinstance(b, RecordingBuilder)]
        if not bound:
            raise ValueError("no metadata builder of this engine records visual attention")
        for builder in bound:
            builder.capture = self

    def begin_step(self, scheduled: SchedulerOutput) -> None:
        """Add new requests and drop finished ones."""
        for request_id in scheduled.finished_req_ids:
            self._requests.pop(request_id, None)
        for request in scheduled.scheduled_new_reqs:
            self._requests[request.req_id] = self._checked(visual_spans(request.mm_features))
            self._shown = None  # an id may come back with another prompt
        self._live = scheduled.total_num_scheduled_tokens > 0

    def begin_forward(self) -> None:
        """Lay out the spans in the order of the rows, if that has changed."""
        if not self._live:  # a dummy run: profiling, or the capture of a CUDA graph
            return
        rows = self._row_ids()
        if rows != self._shown:
            host = self._spans_host.numpy()
            host[:] = 0
            for row, request_id in enumerate(rows):
                spans = self._requests.get(request_id, _NO_SPANS_KNOWN)
                host[row, : len(spans)] = spans
            if self.spans is not self._spans_host:
                # the runner's synchronize_input_prep has waited for the last copy
                self.spans.copy_(self._spans_host, non_blocking=True)
            self._shown = list(rows)
        self._num_rows = len(rows)

    def end_forward(self) -> Tensor:
        """Ratios of the batch just run: [rows], or [rows, captured layers] with `per_layer`."""
        self._live = False
        ratio = self.ratio[:, : self._num_rows]
        return ratio.t() if self.settings.per_layer else ratio.mean(0)

    def _report_overhead(self, ratio: float) -> None:
        """Print to stdout: a training run keeps vLLM's own log at warnings."""
        say(
            f"Visual attention of layers {self.layer_indices} of {self._num_layers}: "
            f"{100 * ratio:+.1f} % of decode time"
        )

    def _checked(self, spans: NDArray[np.int32]) -> NDArray[np.int32]:
        if len(spans) <= self.settings.max_spans:
            return spans
        self.num_without_answer += 1
        if self.num_without_answer == 1:
            logger.warning(
                "A prompt has %d runs of visual tokens, more than max_spans=%d: its visual "
                "attention is nan. Raise vapo.attention.max_spans, or outside of training "
                "max_spans of engine_args(), to capture it. (Shown once.)",
                len(spans),
                self.settings.max_spans,
            )
        return _NO_SPANS_KNOWN


class OverheadMeter:
    """Times the recording inside of the first `NUM_STEPS` pure decode steps.

    On CPU only: there a kernel has ended when its call returns.

    Args:
        report: called with the ratio, 0 or more, of recording time to the rest of the timed steps.
    """

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report
        self._steps, self._step_s, self._recording_s = 0, 0.0, 0.0
        self._timing = False

    @contextmanager
    def step(self, timed: bool) -> Iterator[None]:
        """Around the forward of one engine step; `timed` for a decode step without a prefill."""
        if not timed or self._steps >= NUM_STEPS:
            yield
            return
        self._timing, start = True, time.perf_counter()
        try:
            yield
        finally:
            self._timing = False
        self._step_s += time.perf_counter() - start
        self._steps += 1
        if self._steps == NUM_STEPS:
            self._report(self._recording_s / (self._step_s - self._recording_s))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Around the recording of one layer."""
        if not self._timing:
            yield
            return
        start = time.perf_counter()
        yield
        self._recording_s += time.perf_counter() - start


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
