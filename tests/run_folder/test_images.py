"""A prompt's images as the rollout files keep them."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from vapo_verl.rollout.prompts import image_parts
from vapo_verl.run_folder.rollouts import MAX_IMAGES, MAX_SIDE, small_image, small_images


def encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def prompt(*parts: dict) -> list[dict]:
    text = {"type": "text", "text": "Which digit is left?"}
    return [{"role": "system", "content": "Look."}, {"role": "user", "content": [*parts, text]}]


def colours(messages: list[dict]) -> list[tuple | None]:
    return [data and decoded(data).getpixel((0, 0)) for data in small_images(image_parts(messages))]


@pytest.mark.parametrize("form", ["pixels", "bytes", "path", "file address", "after the buffer"])
def test_an_image_in_each_form_that_a_prompt_has_it_in(tmp_path, form):
    red = Image.new("RGB", (8, 8), "red")
    path = tmp_path / "red.png"
    path.write_bytes(encoded(red))
    opened = Image.open(path)
    part = {
        "pixels": {"image": red},
        "bytes": {"bytes": encoded(red)},
        "path": {"image": str(path)},
        "file address": {"image": path.as_uri()},
        "after the buffer": pickle.loads(
            pickle.dumps({"bytes": path.read_bytes(), "image": opened})
        ),
    }[form]
    assert colours(prompt({"type": "image", **part})) == [(255, 0, 0)]


def test_the_first_images_in_their_order_and_none_for_what_cannot_be_read(tmp_path):
    red, blue = (Image.new("RGB", (8, 8), name) for name in ("red", "blue"))
    bad = [{"bytes": b"no image"}, {"image": "https://example.org/a.png"}, {"image": "none.png"}]
    parts = [{"image": red}, *bad[:2], {"image": blue}, bad[2]]
    messages = prompt(*({"type": "image", **part} for part in parts))
    assert len(parts) > MAX_IMAGES
    assert colours(messages) == [(255, 0, 0), None, None, (0, 0, 255)]
    assert colours(prompt({"type": "image", **bad[2]}, {"type": "image"})) == [None, None]
    assert small_images(image_parts(prompt({"type": "video", "video": "a.mp4"}))) == []
    assert small_images(image_parts([{"role": "user", "content": "Which digit is left?"}])) == []


def test_large_ones_are_scaled_down_and_small_ones_kept_to_the_pixel():
    noise = np.random.default_rng(0).integers(0, 256, (2000, 1000, 3), dtype=np.uint8)
    large = small_image(Image.fromarray(noise))
    assert decoded(large).size == (MAX_SIDE // 2, MAX_SIDE)
    assert len(large) < 200_000  # noise is the worst there is
    tiny = Image.fromarray(noise[:64, :64])
    assert decoded(small_image(tiny)).tobytes() == tiny.tobytes()


def test_only_pixels_are_kept_and_what_is_transparent_is_white():
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer would turn it
    data = small_image(decoded(encoded(image, exif=exif)))
    assert decoded(data).getpixel((0, 0)) == (255, 255, 255)
    assert not decoded(data).getexif()
    assert small_image(Image.new("I;16", (8, 8)))  # any mode
