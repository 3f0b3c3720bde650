"""Export the visual attention of every generated token from vLLM: docs/attention.md.

llm = vllm.LLM(model, **engine_args())
visual_attention(llm.generate(...)[0].outputs[0])  # [T], each in [0, 1]
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vapo_verl.attention.settings import Settings, as_layers
from vapo_verl.config import DEFAULT_MAX_SPANS

__all__ = ["decode_visual_attention", "engine_args", "visual_attention"]
Values = NDArray[np.float32]


def engine_args(
    layers: str | Sequence[int] | None = None,
    per_layer: bool = False,
    *,
    on_request: bool = False,
    max_spans: int = DEFAULT_MAX_SPANS,
    additional_config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments that make a vLLM engine export visual attention.

    For ``vllm.LLM(model, **engine_args())``, ``AsyncEngineArgs`` and veRL's
    ``engine_kwargs.vllm``; nothing of vLLM is replaced in the calling process. Pass your own
    ``additional_config`` here: next to ``**engine_args()`` Python refuses the second one, and
    merged later into a dict it would replace the settings of the capture.

    Args:
        layers: decoder layers to watch: a list of indices, ``all``, or None for one in 8 (at
            least two), evenly spaced. The cost grows with their number.
        per_layer: return each layer: [T, layers], ascending, in place of their mean [T].
        on_request: only for requests with
            ``SamplingParams(extra_args={"visual_attention": True})``.
        max_spans: runs of visual tokens a prompt may have before its values are nan.
        additional_config: vLLM's, for other plugins; it is merged, and not changed itself.

    Raises:
        ValueError: an argument out of its range, or an `additional_config` that is no mapping or
            holds other settings of visual attention.
    """
    settings = Settings(
        layers=as_layers(layers), per_layer=per_layer, on_request=on_request, max_spans=max_spans
    )
    return {
        "worker_cls": "vapo_verl.attention.worker.VisualAttentionWorker",
        "scheduler_cls": "vapo_verl.attention.scheduler.make_scheduler",
        "additional_config": _merged(additional_config, settings.to_additional_config()),
    }


def _merged(given: Mapping[str, Any] | None, ours: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(given, Mapping | None):
        raise ValueError(
            f"additional_config={given!r} is a {type(given).__name__}: give a mapping of names "
            "to values"
        )
    for key, value in ours.items():
        if given and key in given and given[key] != value:
            raise ValueError(
                f"additional_config[{key!r}]={given[key]!r} contradicts the other arguments, which "
                f"give {value!r}: leave it out"
            )
    return {**(given or {}), **ours}


def visual_attention(completion_output: Any) -> Values:
    """Visual attention ratio of every token of a finished vLLM `CompletionOutput`.

    Value t is the fraction, in [0, 1], of softmax attention which the query that produced token t
    puts on the prompt's image and video tokens, averaged over heads and the chosen layers
    (appendix A.4 of arXiv 2509.25848). That query is the token before token t: the prompt's last
    one for t = 0. 0 throughout for a prompt without images, nan for one with more than `max_spans`
    runs of visual tokens.

    Returns:
        float32 [T], or [T, layers] with `per_layer`.

    Raises:
        ValueError: the output carries no values: unfinished, not requested, or an engine
            started without `engine_args()`; or not all of its tokens, as with
            ``output_kind=RequestOutputKind.DELTA``.
    """
    length = len(completion_output.token_ids)
    values = completion_output.routed_experts
    if values is None:
        if length == 0:
            return np.zeros(0, dtype=np.float32)
        raise ValueError(
            "this output carries no visual attention: start the engine with "
            "vapo_verl.attention.engine_args(), wait for the output to finish, with "
            "on_request=True ask for it in SamplingParams.extra_args, and use "
            "SamplingParams.output_kind=CUMULATIVE or FINAL_ONLY: DELTA may drop it"
        )
    if len(values) != length:
        raise ValueError(
            f"visual attention of {len(values)} tokens for an output of {length}: with "
            "SamplingParams.output_kind=DELTA a finished output holds its last tokens alone, use "
            "CUMULATIVE or FINAL_ONLY; otherwise the engine exports something else in this field"
        )
    return values


def decode_visual_attention(encoded: str) -> Values:
    """The values from a response of ``vllm serve``: ``choices[i].routed_experts``.

    Args:
        encoded: base64 of NumPy's ``.npy`` format.

    Raises:
        ValueError: it is something else. Memory is allocated for its real size only.
    """
    data = base64.b64decode(encoded)
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"the values are in version {version} of the .npy format; (1, 0) is known")
    shape, _, kind = np.lib.format.read_array_header_1_0(file)
    num_bytes, num_given = math.prod(shape) * kind.itemsize, len(data) - file.tell()
    if kind.hasobject or num_bytes != num_given:
        raise ValueError(
            f"the values claim shape {shape} of {kind}, which are not the {num_given} bytes that "
            "follow: the response was cut, or holds something else (allow_pickle=False)"
        )
    return np.load(io.BytesIO(data), allow_pickle=False)
