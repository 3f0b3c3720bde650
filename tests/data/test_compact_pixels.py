"""uint8 pixels become the processor's floats again, bit for bit."""

import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessor
from verl.utils.model import extract_multi_modal_inputs

from vapo_verl.data.compact_pixels import CompactPixels, ModelInputs, compact

QWEN25 = Qwen2VLImageProcessor()
QWEN3 = Qwen2VLImageProcessor(patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def images(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def processed(processor, sizes, **options):
    return dict(processor(images=images(sizes), return_tensors="pt", **options))


@pytest.mark.parametrize("processor", [QWEN25, QWEN3], ids=["qwen2.5-vl", "qwen3-vl"])
@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(29, 300), st.integers(29, 300)), min_size=1, max_size=3))
def test_pixels_are_the_processors_own(processor, sizes):
    inputs = processed(processor, sizes)
    found = compact(inputs["pixel_values"], processor)
    assert found is not None and found.patches.dtype == torch.uint8
    assert torch.equal(found.pixel_values(), inputs["pixel_values"])
    for dtype in (torch.float32, torch.bfloat16):  # as the vision tower casts them
        assert torch.equal(found.pixel_values().to(dtype), inputs["pixel_values"].to(dtype))


def test_every_value_of_a_channel_comes_back():
    ramp = np.arange(256, dtype=np.uint8).repeat(4).reshape(32, 32)
    image = Image.fromarray(np.stack([ramp, ramp.T, 255 - ramp], axis=-1))
    inputs = dict(QWEN3(images=[image], return_tensors="pt", do_resize=False))
    found = compact(inputs["pixel_values"], QWEN3)
    assert torch.equal(found.pixel_values(), inputs["pixel_values"])
    assert set(found.patches.unique().tolist()) == set(range(256))


def test_the_images_are_those_that_the_processor_resized():
    sizes = [(56, 84), (140, 112)]
    inputs = processed(QWEN25, sizes, do_resize=False)  # multiples of 28 already
    found = CompactPixels.from_plain(compact(inputs["pixel_values"], QWEN25).to_plain())
    for image, original in zip(found.images(inputs["image_grid_thw"]), images(sizes), strict=True):
        assert np.array_equal(image.numpy(), np.asarray(original))


def test_an_eighth_of_the_bytes_travels():
    inputs = processed(QWEN25, [(784, 1008)])  # 1008 image tokens, 4032 patches
    sent = ModelInputs.of(inputs, QWEN25)
    grid = inputs["image_grid_thw"].numel() * 8
    assert sent.num_bytes == inputs["pixel_values"].numel() * 4 // 8 + grid
    buffer = io.BytesIO()
    pickle.dump(sent, buffer, protocol=5)
    assert buffer.tell() < sent.num_bytes + 1000


def test_what_no_uint8_pixels_explain_stays_as_it_is():
    inputs = processed(QWEN25, [(60, 60)])
    moved = inputs["pixel_values"] + 1e-3
    assert compact(moved, QWEN25) is None
    frames = inputs["pixel_values"].clone()
    frames[0, 14 * 14] += 1  # the second frame of the first patch differs
    assert compact(frames, QWEN25) is None
    assert compact(inputs["pixel_values"].double(), QWEN25) is None
    assert compact(inputs["pixel_values"], object()) is None
    kept = dict(ModelInputs.of({**inputs, "pixel_values": moved}, QWEN25).items())
    assert kept["pixel_values"] is moved


def test_verl_reads_them_as_it_reads_a_dict():
    one, two = processed(QWEN25, [(60, 90)]), processed(QWEN25, [(120, 40), (33, 33)])
    plain = extract_multi_modal_inputs([one, {}, two])
    ours = extract_multi_modal_inputs(
        [ModelInputs.of(one, QWEN25), {}, ModelInputs.of(two, QWEN25)]
    )
    assert plain.keys() == ours.keys() == {"pixel_values", "image_grid_thw"}
    assert all(torch.equal(plain[name], ours[name]) for name in plain)
    assert "image_bound" not in ModelInputs.of(one, QWEN25)
    assert "pixel_values" in ModelInputs.of(one, QWEN25)
