"""Families of vision-language models by `model_type`: which run here, and why others do not.

Read from config.json alone, so that a run that cannot work ends before Ray and the engine start.
docs/models.md has the same tables.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vapo_verl.attention.settings import Settings, as_layers

RUNNING = {
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL-MoE",
}
"""`model_type` -> name, of the families that anchors and training support."""
HUB_TIMEOUT_S = 10.0
"""For each of connecting to the hub, sending, and every part of the reply."""
_NO_PROCESSOR = (
    "veRL 0.9.1 makes no processor of it (verl.utils.hf_processor) and would go on without images"
)
_IMAGE_TOKENS = (
    "veRL 0.9.1 sends an image as all of its tokens and leaves one of them only for Qwen-VL "
    "(qwen2_5_vl_dedup_image_tokens), and vLLM would expand each image twice"
)
_NOT_TRIED = "veRL 0.9.1 and vLLM 0.24 know it, but no run of it has been tried here"
MISSING = {
    "internvl": f"InternVL3.5: {_NO_PROCESSOR}",
    "internvl_chat": f"InternVL3.5 with its own code: {_NO_PROCESSOR}",
    "glm4v": f"GLM-4.1V: {_IMAGE_TOKENS}",
    "glm4v_moe": f"GLM-4.5V: {_IMAGE_TOKENS}",
    "glm46v": f"GLM-4.6V: {_IMAGE_TOKENS}",
    "qwen3_5": f"Qwen3.5: {_NOT_TRIED}",
    "qwen3_5_moe": f"Qwen3.5-MoE: {_NOT_TRIED}",
}
"""Refused families, and what upstream or this package lacks."""
SOFTMAX_LAYERS = ("full_attention", "sliding_attention")
"""`layer_types` of config.json from which visual attention is captured. `linear_attention` has no
softmax over keys, and the engine's `chunked_attention` does not see a request's full context."""


def check_family(config: Mapping[str, Any], key: str) -> None:
    """Refuse a model of a family that is not known to work.

    Args:
        config: config.json.
        key: the setting with its value, for the message.

    Raises:
        ValueError: what is missing, and which families work.
    """
    kind = config.get("model_type")
    if kind in RUNNING:
        return
    names = ", ".join(f"{name} ({model_type})" for model_type, name in RUNNING.items())
    what = f"a {kind!r} model" if kind not in MISSING else f"a {kind!r} model. {MISSING[kind]}"
    raise ValueError(f"{key} is {what}; use one of {names}")


def check_weight_sync(config: Mapping[str, Any], device: str, key: str) -> None:
    """Refuse experts on CPU, where vLLM 0.24 packs their weights: they cannot be updated.

    Args:
        config: config.json.
        device: `trainer.device`.
        key: the setting with its value, for the message.

    Raises:
        ValueError: the model has experts.
    """
    experts = num_experts(config)
    if experts and device == "cpu":
        raise ValueError(
            f"{key} has {experts} experts a layer, and trainer.device=cpu: vLLM's CPU kernels pack "
            "their weights at the start and take no update; train it on GPUs, or use a dense model"
        )


def check_heads(config: Mapping[str, Any], ranks: int, key: str) -> None:
    """Refuse a number of ranks over which a layer's attention heads do not split.

    Queries are split evenly. Keys and values are split evenly too, or their heads are repeated: the
    rule of vLLM's tensor parallelism and of veRL's Ulysses alike.

    Args:
        config: config.json; one that states no heads passes.
        ranks: that share a sequence or a layer.
        key: the setting of `ranks`, for the message.

    Raises:
        ValueError: with the numbers of heads and the smaller sizes that work.
    """
    text = config.get("text_config") or config
    heads = text.get("num_attention_heads") or config.get("num_attention_heads")
    if not heads:
        return
    kv = text.get("num_key_value_heads") or config.get("num_key_value_heads") or heads

    def splits(size: int) -> bool:
        return heads % size == 0 and (kv % size == 0 or size % kv == 0)

    if not splits(ranks):
        fits = ", ".join(str(size) for size in range(1, ranks) if splits(size))
        raise ValueError(
            f"{key}={ranks}: the model's {heads} attention heads and {kv} heads of keys and values "
            f"do not split over {ranks} ranks; set one of {fits}"
        )


def num_experts(config: Mapping[str, Any]) -> int:
    """Experts of a layer; 0 for a dense model.

    Args:
        config: config.json.
    """
    text = config.get("text_config") or config
    return int(text.get("num_experts") or text.get("num_local_experts") or 0)


def softmax_layers(config: Mapping[str, Any]) -> list[int]:
    """Decoder layers with softmax attention, ascending: all of most families, some of Qwen3.5.

    The engine finds the same layers by the type of their modules (`attention.worker`).

    Args:
        config: config.json; `text_config` is read where there is one.
    """
    text = config.get("text_config") or config
    count = int(text["num_hidden_layers"])
    types: Sequence[str] | None = text.get("layer_types")
    if types is None and (period := text.get("full_attention_interval")):
        types = [
            "full_attention" if (i + 1) % period == 0 else "linear_attention" for i in range(count)
        ]
    if types is None:
        return list(range(count))
    return [i for i, of_layer in enumerate(types) if of_layer in SOFTMAX_LAYERS]


def captured_layers(config: Mapping[str, Any], layers: str | Sequence[int] | None) -> list[int]:
    """Layers whose visual attention a run exports, as the engine will choose them.

    Args:
        config: config.json.
        layers: `vapo.attention.layers`.

    Raises:
        ValueError: a layer of `vapo.attention.layers`, or every layer, has no softmax attention.
    """
    available = softmax_layers(config)
    if not available:
        raise ValueError(
            "vapo.attention.enabled=True, but no decoder layer has softmax attention; set it to "
            "false"
        )
    try:
        return Settings(layers=as_layers(layers)).select(available)
    except ValueError as error:
        raise ValueError(f"vapo.attention.layers: {error}; leave it null") from error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
        ValueError: it is no JSON object.
    """
    path = folder / "config.json"
    return _object_in(path.read_bytes(), str(path))


def read_hub_config(name: str) -> dict[str, Any]:
    """config.json of a model on the hub, by one request. No file is kept: a cache with this file
    alone would be taken for the model.

    Raises:
        OSError: there is no network, no such model, or no access to it; or HF_HUB_OFFLINE is set.
        ValueError: it is no JSON object.
    """
    from httpx import HTTPError, InvalidURL
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    try:
        reply = get_session().get(
            hf_hub_url(name, "config.json"),
            headers=build_hf_headers(),
            timeout=HUB_TIMEOUT_S,
            follow_redirects=True,
        )
        hf_raise_for_status(reply)
    except (HTTPError, InvalidURL, HFValidationError) as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    return _object_in(reply.content, f"config.json of {name}")


def _object_in(content: bytes, where: str) -> dict[str, Any]:
    try:
        stated = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON ({error}); copy it again") from error
    if not isinstance(stated, dict):
        raise ValueError(f"{where} holds no JSON object; copy it again")
    return stated
