"""Spans of the placeholders that vLLM's own processors lay out."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from transformers import (
    AutoTokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from vapo_verl.attention.capture import visual_spans
from vapo_verl.digits.model import model_dir

IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"


def placeholder(pad):
    return f"<|vision_start|>{pad}<|vision_end|>"


def image(height, width):
    return Image.fromarray(np.full((height, width, 3), 90, dtype=np.uint8))


def video(frames, height, width):
    pixels = np.full((frames, height, width, 3), 90, dtype=np.uint8)
    told = {"fps": 2.0, "total_num_frames": frames, "duration": frames / 2}
    return pixels, {**told, "frames_indices": list(range(frames)), "do_sample_frames": False}


def features_and_ids(folder, prompt, media):
    """What vLLM schedules for a prompt, and the prompt's token ids."""
    pytest.importorskip("vllm")
    from vllm.engine.arg_utils import EngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY

    limits = {kind: len(items) for kind, items in media.items()}
    arguments = EngineArgs(
        model=str(folder), max_model_len=512, dtype="float32", limit_mm_per_prompt=limits
    )
    processor = MULTIMODAL_REGISTRY.create_processor(arguments.create_model_config())
    inputs = processor(prompt, mm_items=processor.info.parse_mm_data(media))
    features = [
        SimpleNamespace(modality=kind, mm_position=position)
        for kind, positions in inputs["mm_placeholders"].items()
        for position in positions
    ]
    return features, inputs["prompt_token_ids"]


def covered(spans):
    return [position for start, end in spans for position in range(start, end)]


@pytest.fixture(scope="module")
def qwen3_vl(tmp_path_factory):
    """Config and processor of a small Qwen3-VL over the packaged tokenizer."""
    folder = tmp_path_factory.mktemp("qwen3_vl")
    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    ids = tokenizer.convert_tokens_to_ids
    Qwen3VLConfig(
        text_config={"vocab_size": len(tokenizer), "hidden_size": 64, "num_hidden_layers": 2},
        vision_config={"depth": 2, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 64},
        image_token_id=ids(IMAGE),
        video_token_id=ids(VIDEO),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        architectures=["Qwen3VLForConditionalGeneration"],
    ).save_pretrained(folder)
    size = {"shortest_edge": 1024, "longest_edge": 2**19}
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, merge_size=2, size=size),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(patch_size=16, size=size),
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)
    return folder


def test_qwen2_5_vl_with_several_images():
    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    prompt = f"a{placeholder(IMAGE)}b{placeholder(IMAGE) * 2}c"
    images = {"image": [image(56, 84), image(84, 84), image(56, 56)]}
    features, ids = features_and_ids(model_dir(), prompt, images)
    spans = visual_spans(features)
    # one merged patch per 28 x 28 pixels
    assert [end - start for start, end in spans] == [6, 9, 4]
    pad = tokenizer.convert_tokens_to_ids(IMAGE)
    assert covered(spans) == [i for i, token in enumerate(ids) if token == pad]


def test_qwen3_vl_with_images_and_the_frames_of_a_video(qwen3_vl):
    """Between the frames stand their times as text: each pair of frames is a span of its own."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    prompt = f"a{placeholder(IMAGE)}b{placeholder(VIDEO)}c{placeholder(IMAGE)}d"
    media = {"image": [image(64, 96), image(96, 64)], "video": [video(6, 64, 64)]}
    features, ids = features_and_ids(qwen3_vl, prompt, media)
    spans = visual_spans(features)
    # 32 x 32 pixels a token; 6 frames are 3 steps of the temporal patch of 2
    assert [end - start for start, end in spans] == [6, 4, 4, 4, 6]
    pads = {tokenizer.convert_tokens_to_ids(pad) for pad in (IMAGE, VIDEO)}
    assert covered(spans) == [i for i, token in enumerate(ids) if token in pads]


def feature(*ranges, modality="image"):
    position = SimpleNamespace(extract_embeds_range=lambda: list(ranges))
    return SimpleNamespace(modality=modality, mm_position=position)


def test_ends_are_inclusive_in_vllm_and_exclusive_here():
    assert visual_spans([feature((3, 3)), feature((7, 9))]).tolist() == [[3, 4], [7, 10]]


def test_features_in_any_order_touching_ones_merged():
    spans = visual_spans([feature((10, 12)), feature((2, 4), (5, 6))])
    assert spans.tolist() == [[2, 7], [10, 13]]


def test_audio_is_not_visual_and_text_has_none():
    assert visual_spans([feature((1, 5), modality="audio")]).shape == (0, 2)
    assert visual_spans(None).shape == (0, 2)
