"""Qwen-VL models with random weights, by family and size, for tests, checks and benchmarks.

Tokenizer and chat template are those of the packaged digits model; nothing is downloaded. The
random weights are meant for tests: logits differ, attention is not uniform, and no special token
but the end of a sequence is sampled, since an `<|image_pad|>` in a response would make the trainer
look for an image that is not there.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from vapo_verl.digits.model import model_dir
from vapo_verl.digits.scene import CELL_PIXELS
from vapo_verl.patches.upstream import save_in_hub_layout
from vapo_verl.reward import THINK_END, THINK_START

THINK_TAGS = (THINK_START, THINK_END)
_TAG_PATTERN = "</?think>|"
"""The packaged tokenizer's first rule of how text is split into words."""
MAX_IMAGE_TOKENS = 1024
"""Default of the processor's limit: an image of 896 x 896 pixels."""
_ADDED_RMS = 3.0
"""RMS of the added vector over sqrt(layers): the residual stream grows with that root."""
_SILENT_NORM = 2.0
"""Norm of the output rows of ids that are not to be sampled."""
_SILENT_LOGIT = -400.0
"""Logit of these ids in a family without biases, before a factor: the size of the residual stream
at its start over that at its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How a family of models differs from the others, beyond sizes."""

    classes: str
    """Prefix of its classes in transformers."""
    processor: str
    video_processor: str
    patch_size: int = 14
    has_windows: bool = False
    """Most layers of the vision tower attend to windows."""
    has_deepstack: bool = False
    """Features of several vision layers are added to the first decoder layers."""
    interleaves_positions: bool = False
    """Rotary frequencies of time, row and column take turns. Attention has no biases."""
    num_experts: int = 0
    softmax_period: int = 1
    """One decoder layer in this many has softmax attention, the others linear attention."""

    @property
    def token_pixels(self) -> int:
        """Side of the square of pixels that becomes one image token."""
        return 2 * self.patch_size


_QWEN2 = Family(
    classes="Qwen2VL", processor="Qwen2VLProcessor", video_processor="Qwen2VLVideoProcessor"
)
_QWEN3 = Family(
    classes="Qwen3VL",
    processor="Qwen3VLProcessor",
    video_processor="Qwen3VLVideoProcessor",
    patch_size=16,
    has_deepstack=True,
    interleaves_positions=True,
)
FAMILIES = {
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": replace(
        _QWEN2, classes="Qwen2_5_VL", processor="Qwen2_5_VLProcessor", has_windows=True
    ),
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": replace(_QWEN3, classes="Qwen3VLMoe", num_experts=4),
    "qwen3_5": replace(_QWEN3, classes="Qwen3_5", has_deepstack=False, softmax_period=2),
}
"""By `model_type` of config.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a model's language model and vision tower."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    rope_sections: tuple[int, int, int]
    """Rotary frequencies for time, row and column; half a head together."""
    max_positions: int
    vocab_size: int | None
    """None: exactly the tokenizer's. A number: the tokenizer is filled up to it."""
    tied: bool
    """Whether input embedding and output layer are one matrix."""
    has_weights: bool
    """Whether weights are written to disk by default."""
    vision_layers: int
    vision_hidden_size: int
    vision_intermediate_size: int
    vision_heads: int
    vision_period: int
    """One vision layer in this many attends to the full image, the others to windows."""


SHAPES = {
    # A few million parameters. Heads of 32, the least that vLLM's CPU attention takes.
    "tiny": Shape(
        hidden_size=128,
        intermediate_size=256,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        rope_sections=(4, 6, 6),
        max_positions=4096,
        vocab_size=None,
        tied=True,
        has_weights=True,
        vision_layers=3,
        vision_hidden_size=128,
        vision_intermediate_size=256,
        vision_heads=4,
        vision_period=2,
    ),
    # 99 million parameters: 16 heads of 64 share 4 KV heads; FlashInfer takes no smaller heads.
    "100m": Shape(
        hidden_size=1024,
        intermediate_size=1536,
        num_layers=12,
        num_heads=16,
        num_kv_heads=4,
        rope_sections=(8, 12, 12),
        max_positions=32_768,
        vocab_size=None,
        tied=True,
        has_weights=True,
        vision_layers=6,
        vision_hidden_size=320,
        vision_intermediate_size=864,
        vision_heads=4,
        vision_period=3,
    ),
    # config.json of Qwen/Qwen2.5-VL-7B-Instruct, with 8 of its 28 decoder layers.
    "7b": Shape(
        hidden_size=3584,
        intermediate_size=18_944,
        num_layers=8,
        num_heads=28,
        num_kv_heads=4,
        rope_sections=(16, 24, 24),
        max_positions=128_000,
        vocab_size=152_064,
        tied=False,
        has_weights=False,
        vision_layers=32,
        vision_hidden_size=1280,
        vision_intermediate_size=3420,
        vision_heads=16,
        vision_period=8,
    ),
}
"""By name: two complete small models, and the shapes of Qwen2.5-VL-7B."""


def make_random_model(
    out: Path,
    size: str = "100m",
    *,
    family: str = "qwen2_5_vl",
    layers: int | None = None,
    vision_layers: int | None = None,
    vocab_size: int | None = None,
    max_image_tokens: int = MAX_IMAGE_TOKENS,
    think_tokens: bool = False,
    weights: bool | None = None,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> PreTrainedConfig:
    """Write a model folder that transformers, vLLM and veRL load, and return its configuration.

    Args:
        out: the folder, made if need be.
        size: a name in `SHAPES`.
        family: a name in `FAMILIES`.
        layers: decoder layers; None for the shape's.
        vision_layers: layers of the vision tower; None for the shape's.
        vocab_size: None for the shape's. The tokenizer is filled up to it with tokens that no text
            encodes to, so that both always have the same length: veRL masks ids that the tokenizer
            lacks in the rollout, not in the actor, and their logprobs would differ by a constant.
        max_image_tokens: images of more are scaled down by the processor.
        think_tokens: make `<think>` and `</think>` added tokens that are never sampled, as they are
            in Qwen3-VL-Instruct; by default each is an ordinary word.
        weights: whether to write weights; None for the shape's choice. Without them vLLM loads the
            folder with `load_format="dummy"`.
        dtype: of the weights, and what an engine takes for `dtype="auto"`.
        seed: of the weights; the same one gives the same bytes with the same versions.

    Raises:
        ValueError: an unknown size or family, a number out of its range, or existing weights in a
            folder that is to have none.
    """
    if family not in FAMILIES:
        raise ValueError(f"family={family} is unknown; use one of {', '.join(FAMILIES)}")
    kind = FAMILIES[family]
    shape = _adapted(size, layers=layers, vision_layers=vision_layers, vocab_size=vocab_size)
    has_weights = shape.has_weights if weights is None else weights
    if max_image_tokens < 1:
        raise ValueError(f"max_image_tokens={max_image_tokens} must be at least 1")
    if not has_weights and any(out.glob("*.safetensors")):
        raise ValueError(f"{out} holds weights of another model; give an empty folder")
    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    config = random_config(shape, tokenizer, kind)
    config.dtype = dtype
    out.mkdir(parents=True, exist_ok=True)
    _build_processor(tokenizer, kind, max_image_tokens).save_pretrained(out)
    _fill_vocabulary(out / "tokenizer.json", config.text_config.vocab_size)
    if think_tokens:
        _add_think_tokens(out / "tokenizer.json")
    if has_weights:
        unused = [*THINK_TAGS] if think_tokens else []
        model = build_random_model(config, tokenizer, dtype, seed, silent=unused)
        save_in_hub_layout(model)
        model.save_pretrained(out)
        for path in out.glob("*.safetensors"):
            path.chmod(0o644)
    else:
        config.save_pretrained(out)
        _generation_config(config).save_pretrained(out)
    return config


def _adapted(
    size: str, *, layers: int | None, vision_layers: int | None, vocab_size: int | None
) -> Shape:
    if size not in SHAPES:
        raise ValueError(f"size={size} is unknown; use one of {', '.join(SHAPES)}")
    shape = SHAPES[size]
    given = {"layers": layers, "vision_layers": vision_layers, "vocab_size": vocab_size}
    for name, value in given.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    return replace(
        shape,
        num_layers=layers or shape.num_layers,
        vision_layers=vision_layers or shape.vision_layers,
        vocab_size=vocab_size or shape.vocab_size,
    )


def random_config(
    shape: Shape, tokenizer: PreTrainedTokenizerBase, family: Family = FAMILIES["qwen2_5_vl"]
) -> PreTrainedConfig:
    """Return the configuration of a shape with the tokenizer's ids.

    Raises:
        ValueError: the shape's vocabulary is smaller than the tokenizer's.
    """
    vocab_size = shape.vocab_size or len(tokenizer)
    if vocab_size < len(tokenizer):
        raise ValueError(
            f"vocab_size={vocab_size} is below the tokenizer's {len(tokenizer)}; set that or more"
        )
    ids = tokenizer.convert_tokens_to_ids
    return _class(family, "Config")(
        text_config=_text_config(shape, tokenizer, family, vocab_size),
        vision_config=_vision_config(shape, family),
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=_is_tied(shape, family),
        architectures=[f"{family.classes}ForConditionalGeneration"],
    )


def _text_config(
    shape: Shape, tokenizer: PreTrainedTokenizerBase, family: Family, vocab_size: int
) -> dict[str, Any]:
    head_dim = shape.hidden_size // shape.num_heads
    assert 2 * sum(shape.rope_sections) == head_dim
    rope = {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": list(shape.rope_sections),
    }
    text = {
        "vocab_size": vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": 1e-6,
        # Attention logits have a standard deviation of hidden_size * initializer_range ** 2 = 2.56:
        # peaked enough for a wrong key or span to show, far from one-hot.
        "initializer_range": 1.6 * shape.hidden_size**-0.5,
        "rope_parameters": rope,
        "tie_word_embeddings": _is_tied(shape, family),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if not family.interleaves_positions:
        return {**text, "max_window_layers": shape.num_layers}
    # every third frequency is a row's, every third a column's, as far as these numbers go
    side = 5 * head_dim // 32
    rope |= {"mrope_section": [head_dim // 2 - 2 * side, side, side], "mrope_interleaved": True}
    text["head_dim"] = head_dim
    if family.num_experts:
        text |= {
            "num_experts": family.num_experts,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,  # as in released folders: vLLM asks for it, transformers not
            # never square: the shape of a weight tells transformers its layout
            "moe_intermediate_size": 3 * shape.intermediate_size // 8,
        }
    if family.softmax_period > 1:
        rope["partial_rotary_factor"] = 1.0
        text |= {
            "full_attention_interval": family.softmax_period,
            "linear_num_key_heads": shape.num_kv_heads,
            "linear_num_value_heads": shape.num_heads,
            "linear_key_head_dim": head_dim,
            "linear_value_head_dim": head_dim,
        }
    return text


def _vision_config(shape: Shape, family: Family) -> dict[str, Any]:
    depth, width = shape.vision_layers, shape.vision_hidden_size
    common = {
        "depth": depth,
        "num_heads": shape.vision_heads,
        "patch_size": family.patch_size,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": width**-0.5,
    }
    if family.classes == "Qwen2VL":  # its `hidden_size` is that of the features
        ratio = shape.vision_intermediate_size // width
        sizes = {"embed_dim": width, "hidden_size": shape.hidden_size, "mlp_ratio": ratio}
        return {**common, **sizes}
    common |= {
        "hidden_size": width,
        "intermediate_size": shape.vision_intermediate_size,
        "out_hidden_size": shape.hidden_size,
    }
    if family.has_windows:
        period = shape.vision_period
        full = list(range(period - 1, depth, period)) or [depth - 1]
        window = 4 * family.token_pixels
        return {
            **common,
            "tokens_per_second": 2,
            "window_size": window,
            "fullatt_block_indexes": full,
        }
    if family.has_deepstack:
        common["deepstack_visual_indexes"] = sorted({depth * i // 4 for i in (1, 2, 3)})
    return common


def _is_tied(shape: Shape, family: Family) -> bool:
    """Without biases, :func:`_silence` needs an output layer of its own."""
    return shape.tied and not family.interleaves_positions


def _class(family: Family, suffix: str) -> Any:
    return getattr(transformers, family.classes + suffix)


def _build_processor(
    tokenizer: PreTrainedTokenizerBase, family: Family, max_image_tokens: int
) -> ProcessorMixin:
    """The family's processor; images from one token up to the limit keep their size."""
    side = family.token_pixels
    pixels = {"min_pixels": side**2, "max_pixels": max_image_tokens * side**2}
    patches = {"patch_size": family.patch_size, "merge_size": 2, "temporal_patch_size": 2}
    return getattr(transformers, family.processor)(
        image_processor=transformers.Qwen2VLImageProcessor(**patches, **pixels),
        video_processor=getattr(transformers, family.video_processor)(**patches, **pixels),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )


def build_random_model(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    silent: Sequence[str] = (),
) -> PreTrainedModel:
    """Return a model of seeded random weights that samples no special token but the end.

    The end of a sequence stays as likely as any other token: most responses of a training run
    reach their limit, and some end before it.

    Args:
        silent: more tokens that are never sampled.
    """
    family = FAMILIES[config.model_type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _class(family, "ForConditionalGeneration")._from_config(config, dtype=dtype)
    ids = {*tokenizer.all_special_ids} - {tokenizer.eos_token_id}
    ids |= {*tokenizer.convert_tokens_to_ids(list(silent))}
    (_silence if family.interleaves_positions else _suppress)(model, sorted(ids))
    model.generation_config = _generation_config(config)
    return model.eval()


def describe(config: PreTrainedConfig) -> str:
    """Return a configuration's sizes as one readable line."""
    text, vision = config.text_config, config.vision_config
    with torch.device("meta"):
        model = _class(FAMILIES[config.model_type], "ForConditionalGeneration")(config)
    return (
        f"{model.num_parameters():,} parameters, {text.num_hidden_layers} decoder layers of "
        f"{text.num_attention_heads} heads ({text.num_key_value_heads} KV heads) of "
        f"{text.hidden_size // text.num_attention_heads}, {vision.depth} vision layers, "
        f"vocabulary {text.vocab_size}"
    )


@torch.no_grad()
def _suppress(model: PreTrainedModel, ids: list[int]) -> None:
    """Give these ids logits far below all others, whatever the input.

    The value bias of the last layer's attention adds the same vector to every token's residual
    stream, since attention weights sum to 1; the ids' output rows point against that vector.
    """
    text = model.config.text_config
    attention = model.model.language_model.layers[-1].self_attn
    group = text.num_attention_heads // text.num_key_value_heads
    bias = attention.v_proj.bias
    bias.fill_(1.0)
    of_heads = bias.view(text.num_key_value_heads, -1).repeat_interleave(group, 0).flatten()
    added = attention.o_proj.weight.float() @ of_heads.float()
    rms = added.square().mean().sqrt()
    bias.fill_(_ADDED_RMS * text.num_hidden_layers**0.5 / rms)
    direction = added / added.norm()
    model.lm_head.weight[ids] = (-_SILENT_NORM * direction).to(model.lm_head.weight.dtype)


@torch.no_grad()
def _silence(model: PreTrainedModel, ids: list[int]) -> None:
    """As :func:`_suppress`, for a model without biases and with a separate output layer.

    Every token's embedding has a 1 in the first channel, which no layer writes to. In the output
    layer, only the rows of these ids read it.
    """
    model.get_input_embeddings().weight[:, 0] = 1.0
    for name, weight in model.model.language_model.named_parameters():
        if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")):
            weight[0] = 0.0
        elif name.endswith("experts.down_proj"):  # [experts, hidden, intermediate]
            weight[:, 0] = 0.0
    rows = model.lm_head.weight
    rows[:, 0] = 0.0
    rows[ids] = 0.0
    rows[ids, 0] = _SILENT_LOGIT


def _generation_config(config: PreTrainedConfig) -> GenerationConfig:
    """As in the packaged model: an end of sequence, which rollouts need."""
    text = config.text_config
    return GenerationConfig(eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id)


def _fill_vocabulary(path: Path, vocab_size: int) -> None:
    """Add tokens that no text encodes to, as no merge makes them, to a saved tokenizer."""
    saved = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = saved["model"]["vocab"]
    vocabulary.update({f"<unused{i}>": i for i in range(len(vocabulary), vocab_size)})
    path.write_text(json.dumps(saved, ensure_ascii=False, indent=2), encoding="utf-8")


def _add_think_tokens(path: Path) -> None:
    """Let a saved tokenizer look for the tags before it splits text; as plain text they are words.

    Their ids stay. In the packaged tokenizer each tag is a word of one token.
    """
    saved = json.loads(path.read_text(encoding="utf-8"))
    split = next(p for p in saved["pre_tokenizer"]["pretokenizers"] if p["type"] == "Split")
    pattern = split["pattern"]["Regex"]
    assert pattern.startswith(_TAG_PATTERN), pattern
    split["pattern"]["Regex"] = pattern.removeprefix(_TAG_PATTERN)
    saved["added_tokens"] += [
        {
            "id": saved["model"]["vocab"][tag],
            "content": tag,
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False),
        }
        for tag in THINK_TAGS
    ]
    path.write_text(json.dumps(saved, ensure_ascii=False, indent=2), encoding="utf-8")


def image_size(num_tokens: int) -> tuple[int, int]:
    """Return width and height in pixels of the most square image of `num_tokens` image tokens.

    An image token stands for 28 x 28 pixels. The processor rounds each side to a multiple of 28
    and, within its limits, changes nothing else: tokens = width / 28 * height / 28.

    Raises:
        ValueError: no tokens, or a number without a factorisation below the processor's largest
            ratio of sides, 200.
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens={num_tokens} must be at least 1")
    rows = next(n for n in range(math.isqrt(num_tokens), 0, -1) if num_tokens % n == 0)
    columns = num_tokens // rows
    if columns > 200 * rows:
        raise ValueError(
            f"num_tokens={num_tokens} makes an image of {rows} x {columns} tokens, longer than the "
            "processor takes; use a number with more factors"
        )
    return CELL_PIXELS * columns, CELL_PIXELS * rows
