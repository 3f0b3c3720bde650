"""Qwen2.5-VL with random weights, by size, for checks and benchmarks on a GPU.

Tokenizer and chat template are those of the packaged digits model; nothing is downloaded. The
random weights are meant for tests: logits differ, attention is not uniform, and no special token
but the end of a sequence is sampled, since an `<|image_pad|>` in a response would make the trainer
look for an image that is not there.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from vapo_verl.digits.model import model_dir
from vapo_verl.digits.model.architecture import build_processor, qwen_config
from vapo_verl.digits.scene import CELL_PIXELS

MAX_IMAGE_TOKENS = 1024
"""Default of the processor's limit: an image of 896 x 896 pixels."""
_ADDED_RMS = 3.0
"""Times the square root of the layers: of the residual stream's size, which grows so with depth."""
_SILENT_NORM = 2.0
"""Of the output rows of ids that are not to be sampled."""


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
"""By name: a complete small model, and the shapes of Qwen2.5-VL-7B."""


def make_random_model(
    out: Path,
    size: str = "100m",
    *,
    layers: int | None = None,
    vision_layers: int | None = None,
    vocab_size: int | None = None,
    max_image_tokens: int = MAX_IMAGE_TOKENS,
    weights: bool | None = None,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Qwen2_5_VLConfig:
    """Write a model folder that transformers, vLLM and veRL load, and return its configuration.

    Args:
        out: the folder, made if need be.
        size: a name in `SHAPES`.
        layers: decoder layers; None for the shape's.
        vision_layers: layers of the vision tower; None for the shape's.
        vocab_size: None for the shape's. The tokenizer is filled up to it with tokens that no text
            encodes to, so that both always have the same length: veRL masks ids that the tokenizer
            lacks in the rollout, not in the actor, and their logprobs would differ by a constant.
        max_image_tokens: images of more are scaled down by the processor.
        weights: whether to write weights; None for the shape's choice. Without them vLLM loads the
            folder with `load_format="dummy"`.
        dtype: of the weights, and what an engine takes for `dtype="auto"`.
        seed: of the weights; the same one gives the same bytes with the same versions.

    Raises:
        ValueError: an unknown size, a number out of its range, or weights in the way of a folder
            without any.
    """
    shape = _adapted(size, layers=layers, vision_layers=vision_layers, vocab_size=vocab_size)
    has_weights = shape.has_weights if weights is None else weights
    if max_image_tokens < 1:
        raise ValueError(f"max_image_tokens={max_image_tokens} must be at least 1")
    if not has_weights and any(out.glob("*.safetensors")):
        raise ValueError(f"{out} holds weights of another model; give an empty folder")
    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    config = random_config(shape, tokenizer)
    config.dtype = dtype
    out.mkdir(parents=True, exist_ok=True)
    build_processor(tokenizer, max_cells=max_image_tokens).save_pretrained(out)
    _fill_vocabulary(out / "tokenizer.json", config.text_config.vocab_size)
    if has_weights:
        build_random_model(config, tokenizer, dtype, seed).save_pretrained(out)
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


def random_config(shape: Shape, tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLConfig:
    """Return the configuration of a shape with the tokenizer's ids.

    Raises:
        ValueError: the shape's vocabulary is smaller than the tokenizer's.
    """
    vocab_size = shape.vocab_size or len(tokenizer)
    if vocab_size < len(tokenizer):
        raise ValueError(
            f"vocab_size={vocab_size} is below the tokenizer's {len(tokenizer)}; set that or more"
        )
    head_dim = shape.hidden_size // shape.num_heads
    assert 2 * sum(shape.rope_sections) == head_dim
    text = {
        "vocab_size": vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "max_position_embeddings": shape.max_positions,
        "max_window_layers": shape.num_layers,
        "rms_norm_eps": 1e-6,
        # Attention logits have a standard deviation of hidden_size * initializer_range ** 2 = 2.56:
        # peaked enough for a wrong key or span to show, far from one-hot.
        "initializer_range": 1.6 * shape.hidden_size**-0.5,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": list(shape.rope_sections),
        },
        "tie_word_embeddings": shape.tied,
    }
    return qwen_config(tokenizer, text, _vision_config(shape))


def _vision_config(shape: Shape) -> dict[str, Any]:
    depth, period = shape.vision_layers, shape.vision_period
    full = list(range(period - 1, depth, period)) or [depth - 1]
    return {
        "depth": depth,
        "hidden_size": shape.vision_hidden_size,
        "intermediate_size": shape.vision_intermediate_size,
        "num_heads": shape.vision_heads,
        "out_hidden_size": shape.hidden_size,
        "patch_size": CELL_PIXELS // 2,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 4 * CELL_PIXELS,
        "fullatt_block_indexes": full,
        "initializer_range": shape.vision_hidden_size**-0.5,
    }


def build_random_model(
    config: Qwen2_5_VLConfig,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Qwen2_5_VLForConditionalGeneration:
    """Return a model of seeded random weights that samples no special token but the end.

    The end of a sequence stays as likely as any other token: most responses of a training run
    reach their limit, and some end before it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype)
    _suppress(model, sorted({*tokenizer.all_special_ids} - {tokenizer.eos_token_id}))
    model.generation_config = _generation_config(config)
    return model.eval()


def describe(config: Qwen2_5_VLConfig) -> str:
    """Return a configuration's sizes as one readable line."""
    text, vision = config.text_config, config.vision_config
    with torch.device("meta"):
        number = Qwen2_5_VLForConditionalGeneration(config).num_parameters()
    return (
        f"{number:,} parameters, {text.num_hidden_layers} decoder layers of "
        f"{text.num_attention_heads} heads ({text.num_key_value_heads} KV heads) of "
        f"{text.hidden_size // text.num_attention_heads}, {vision.depth} vision layers, "
        f"vocabulary {text.vocab_size}"
    )


@torch.no_grad()
def _suppress(model: Qwen2_5_VLForConditionalGeneration, ids: list[int]) -> None:
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


def _generation_config(config: Qwen2_5_VLConfig) -> GenerationConfig:
    """As in the packaged model: an end of sequence, which rollouts need."""
    text = config.text_config
    return GenerationConfig(eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id)


def _fill_vocabulary(path: Path, vocab_size: int) -> None:
    """Add tokens that no text encodes to, as no merge makes them, to a saved tokenizer."""
    saved = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = saved["model"]["vocab"]
    vocabulary.update({f"<unused{i}>": i for i in range(len(vocabulary), vocab_size)})
    path.write_text(json.dumps(saved, ensure_ascii=False, indent=2), encoding="utf-8")


def image_size(num_tokens: int) -> tuple[int, int]:
    """Return width and height in pixels of the most square image of so many image tokens.

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
