"""Shape of the small model: the original Qwen2.5-VL except for its sizes."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoProcessor,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from vapo_verl.digits.render import CELL_PIXELS

_WIDTH = 128
_MAX_CELLS = 64
_NUM_NEAR, _NEARNESS = 4, 2.0


def model_config(tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLConfig:
    """Return the configuration of about 2 million parameters that goes with a tokenizer.

    The vocabulary is exactly the tokenizer's: a padded one would give probability to ids that an
    engine masks, and rollout and actor logprobs would then differ by a constant.
    """
    return qwen_config(tokenizer, _text_config(tokenizer), _vision_config())


def qwen_config(
    tokenizer: PreTrainedTokenizerBase, text: dict[str, Any], vision: dict[str, Any]
) -> Qwen2_5_VLConfig:
    """Join the two halves' sizes, with the tokenizer's ids for vision tokens, end and padding."""
    ids = tokenizer.convert_tokens_to_ids
    of_tokens = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return Qwen2_5_VLConfig(
        text_config={**text, **of_tokens},
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=text["tie_word_embeddings"],
        architectures=["Qwen2_5_VLForConditionalGeneration"],
    )


def _text_config(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    # head_dim is 32, the minimum of vLLM's CPU attention. The rotary base leaves half of the
    # frequencies nearly still over a hundred tokens: looking up a cell by its content needs them.
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4}
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": _WIDTH,
        "intermediate_size": 4 * _WIDTH,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": _WIDTH**-0.5,
        "rope_parameters": rope,
        "tie_word_embeddings": True,
    }


def _vision_config() -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_heads": 4,
        "out_hidden_size": _WIDTH,
        "patch_size": CELL_PIXELS // 2,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [0, 1],
    }


def build_model(tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLForConditionalGeneration:
    """Build the untrained model in float32; seed torch first."""
    model = Qwen2_5_VLForConditionalGeneration(model_config(tokenizer))
    _match_attention(model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


@torch.no_grad()
def _match_attention(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Initialise every attention head as a look-up that copies similar or near tokens.

    Query weights equal key weights, and output weights are the transpose of value weights. Biases
    on the fastest rotary frequencies make the last group of heads prefer near tokens. Reading a
    cell takes both: the position in the last words, then the cell that matches it.
    """
    text = model.config.text_config
    shape = (text.num_key_value_heads, -1, text.hidden_size)
    group = text.num_attention_heads // text.num_key_value_heads
    head_dim = text.hidden_size // text.num_attention_heads
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        keys, values = attention.k_proj.weight.view(shape), attention.v_proj.weight.view(shape)
        attention.q_proj.weight.copy_(keys.repeat_interleave(group, dim=0).flatten(0, 1))
        attention.o_proj.weight.copy_(
            values.repeat_interleave(group, dim=0).flatten(0, 1).T / group
        )
        attention.k_proj.bias.view(-1, head_dim)[-1:, :_NUM_NEAR] = _NEARNESS
        attention.q_proj.bias.view(-1, head_dim)[-group:, :_NUM_NEAR] = _NEARNESS


def build_processor(
    tokenizer: PreTrainedTokenizerBase, max_cells: int = _MAX_CELLS
) -> Qwen2_5_VLProcessor:
    """Build the processor; images from one cell up to `max_cells` cells keep their size.

    A cell is 28 x 28 pixels and becomes one image token: 2 x 2 merged patches of 14 x 14.
    """
    pixels = {"min_pixels": CELL_PIXELS**2, "max_pixels": max_cells * CELL_PIXELS**2}
    patches = {"patch_size": CELL_PIXELS // 2, "merge_size": 2, "temporal_patch_size": 2}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches, **pixels),
        video_processor=Qwen2VLVideoProcessor(**patches, **pixels),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )


def save_model(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, folder: Path
) -> None:
    """Write all files for loading, with weights rounded to bfloat16; the model is unchanged."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def load_model(folder: Path) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """Load model and processor for evaluation, in float32."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def write_json(path: Path, data: object) -> None:
    """Write indented JSON that ends with a newline."""
    path.write_text(json.dumps(data, indent=2) + "\n")
