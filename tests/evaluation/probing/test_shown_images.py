"""An image is opened, hashed and processed once, however many contexts show it."""

import hashlib
import json
import os

import numpy as np
import pytest
from PIL import Image

from vapo_verl.digits.model import model_dir
from vapo_verl.evaluation.probing.engine import Context, ShownImage, request_of

IMAGE_PAD = json.loads((model_dir() / "config.json").read_text())["image_token_id"]


@pytest.fixture(scope="module")
def renderer():
    """vLLM's way from a request to the engine, without an engine."""
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    from vllm.engine.arg_utils import EngineArgs
    from vllm.renderers.registry import renderer_from_config

    args = EngineArgs(
        model=str(model_dir()),
        dtype="float32",
        max_model_len=336,
        limit_mm_per_prompt={"image": 2, "video": 0},
        skip_mm_profiling=True,
    )
    return renderer_from_config(args.create_engine_config())


@pytest.fixture
def work(renderer, monkeypatch):
    """Counts of the image processor's images and of vLLM's hashes of anything."""
    from vllm.multimodal.hasher import MultiModalHasher

    renderer.clear_mm_cache()
    counts = {"processed": 0, "hashed": 0}
    processor = type(renderer.get_mm_processor().info.get_image_processor())
    preprocess, hash_kwargs = processor.preprocess, MultiModalHasher.hash_kwargs

    def counted_preprocess(self, images, *args, **kwargs):
        counts["processed"] += len(images) if isinstance(images, list) else 1
        return preprocess(self, images, *args, **kwargs)

    def counted_hash(**kwargs):
        counts["hashed"] += 1
        return hash_kwargs(**kwargs)

    monkeypatch.setattr(processor, "preprocess", counted_preprocess)
    monkeypatch.setattr(MultiModalHasher, "hash_kwargs", counted_hash)
    return counts


def picture(seed):
    values = np.random.default_rng(seed).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    return ShownImage(Image.fromarray(values))


def prompt(*images):
    return Context(ids=(1, *[IMAGE_PAD] * len(images), 2), images=images)


def test_a_prompt_its_samples_and_its_probes_process_its_images_once(renderer, work):
    first, second = picture(0), picture(1)
    contexts = [prompt(first, second)] * 4  # samples
    contexts += [prompt(first, second).then([5] * n) for n in range(20)]  # cuts with a question
    contexts += [prompt(first).then([7, IMAGE_PAD], second)]  # a later turn shows an image again
    made = [each for context in contexts for each in renderer.render_cmpl([request_of(context)])]
    assert work == {"processed": 2, "hashed": 0}
    assert {tuple(each["mm_hashes"]["image"]) for each in made} == {(first.key, second.key)}


def test_equal_images_of_different_rows_are_processed_once(renderer, work):
    for _ in range(3):
        renderer.render_cmpl([request_of(prompt(picture(0)))])
    assert work == {"processed": 1, "hashed": 0}


def test_vllm_makes_the_same_of_an_image_without_a_key(renderer, work):
    request = request_of(prompt(picture(0)))
    [with_key] = renderer.render_cmpl([request])
    renderer.clear_mm_cache()
    del request["multi_modal_uuids"]
    [without] = renderer.render_cmpl([request])
    assert work == {"processed": 2, "hashed": 1}
    assert with_key["prompt_token_ids"] == without["prompt_token_ids"]
    [one], [other] = (each["mm_kwargs"]["image"] for each in (with_key, without))
    for name, value in one.get_data().items():
        assert (value == other.get_data()[name]).all()


def test_a_key_is_that_of_the_pixels_and_computed_once(monkeypatch):
    digests = []
    sha256 = hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda data: digests.append(1) or sha256(data))
    image = picture(0)
    assert [image.key, image.key] == [picture(0).key] * 2
    assert len(digests) == 2
    turned = ShownImage(Image.frombytes("RGB", (56, 84), image.pixels.tobytes()))
    others = [picture(1), turned]
    assert len({image.key, *(other.key for other in others)}) == 3


def test_a_context_without_images_is_only_tokens():
    assert request_of(Context(ids=(1, 2), images=())) == {"prompt_token_ids": [1, 2]}
