"""One opener of images: every kind of file has the same pixels for every consumer."""

import ast
import asyncio
import base64
import contextlib
import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from PIL import Image
from qwen_vl_utils import fetch_image
from transformers import AutoProcessor

import vapo_verl
from vapo_verl.claims.audit.page import page_image
from vapo_verl.claims.images import media_type
from vapo_verl.claims.making.maker import vote_messages
from vapo_verl.claims.requests.endpoint import prepare
from vapo_verl.data.dataset import VapoDataset
from vapo_verl.data.errors import BadCell, RowError
from vapo_verl.data.images import (
    StoredImage,
    check_image,
    check_resize,
    image_options,
    load_image,
    read_header,
    resized,
)
from vapo_verl.data.prompt_length import Frame, NotFromHeaders
from vapo_verl.data.rows import check_parquet
from vapo_verl.digits.model import model_dir
from vapo_verl.evaluation.probing.rows import image_size, open_image, read_rows
from vapo_verl.rollout.prompts import image_parts
from vapo_verl.run_folder.rollouts import image_uri, small_images

ROOT = Path(vapo_verl.__file__).parent
WIDTH, HEIGHT = 56, 84
OPENER = "vapo_verl/data/images.py"
CONSUMERS = {
    "claims/audit/page.py": "images of the audit page",
    "claims/images.py": "kinds of image files",
    "claims/requests/endpoint.py": "requests to a claim maker or a judge",
    "data/dataset.py": "the policy's prompts",
    "data/rows.py": "data check",
    "data/prompt_length.py": "lengths of prompts",
    "digits/model/evaluate.py": "the small model on its own task",
    "doctor/rows.py": "rows as a run reads them",
    "evaluation/benchmarks/benchmark_file.py": "images of a benchmark",
    "evaluation/benchmarks/benchmark_page.py": "the page that compares two models",
    "evaluation/probing/engine.py": "the engine of all probing commands",
    "evaluation/probing/rows.py": "rows of all probing commands",
    "plots/matplotlib_figure.py": "a figure that was just drawn",
    "run_folder/rollouts.py": "rollout samples and the report",
}
"""Modules that have images opened, and what for: each is compared with the others below."""
DECODERS = {
    *("frombuffer", "frombytes", "fromstring", "imread", "imdecode", "decode_image", "read_image"),
    *("fetch_image", "process_image", "ImageFile", "exif_transpose"),
}
IMAGE_LIBRARIES = {"cv2", "imageio", "skimage", "tifffile", "pyvips", "torchvision", "wand"}


def scene(ground=255, bar=0):
    """A bar along the top, and a grey block below it at the left."""
    grey = np.full((HEIGHT, WIDTH), ground, dtype=np.uint8)
    grey[: HEIGHT // 6, :] = bar
    grey[HEIGHT // 6 : HEIGHT // 2, : WIDTH // 4] = 128
    return grey


def rgb():
    """An image that no turn leaves as it is."""
    grey = scene()
    return Image.fromarray(np.stack([grey, grey // 2, 255 - grey // 3], axis=2))


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def transparent(mode):
    """A black bar on a transparent ground, which is black below."""
    alpha = Image.fromarray(255 - scene())
    black = Image.new("L", alpha.size, 0)
    la = Image.merge("LA", [black, alpha])
    return la if mode == "LA" else la.convert(mode)


def palette_with_transparency():
    indexed = Image.fromarray((scene() == 0).astype(np.uint8), "P")
    indexed.putpalette([0, 0, 0, 0, 0, 0])
    return saved(indexed, transparency=0)


def late_exif():
    """A PNG whose orientation stands behind its pixels, as the format allows."""
    data, tags = saved(rgb()), exif(6).tobytes().removeprefix(b"Exif\0\0")
    chunk = b"eXIf" + tags
    late = struct.pack(">I", len(tags)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    end = data.rindex(b"IEND") - 4
    return data[:end] + late + data[end:]


def deep_grey(**options):
    return Image.fromarray(scene().astype(np.uint16) * 257), options


def float_tiff(top):
    return saved(Image.fromarray(scene().astype(np.float32) * (top / 255)), "TIFF")


def animation(kind):
    frames = [rgb(), Image.new("RGB", (WIDTH, HEIGHT), "red")]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)


UPRIGHT = np.asarray(rgb())
ON_WHITE = np.stack([np.where(scene() == 255, 255, np.where(scene() == 0, 0, 127))] * 3, axis=2)
BAR = np.stack([np.where(scene() == 0, 0, 255)] * 3, axis=2)
GREY = np.stack([scene()] * 3, axis=2)
FILES = {
    "png": (saved(rgb()), UPRIGHT),
    "jpeg": (saved(rgb(), "JPEG", quality=100, subsampling=0), UPRIGHT),
    "bmp": (saved(rgb(), "BMP"), UPRIGHT),
    "webp": (saved(rgb(), "WEBP", lossless=True), UPRIGHT),
    "palette": (saved(rgb().quantize(8)), UPRIGHT),
    "gif": (saved(rgb(), "GIF"), UPRIGHT),
    "cmyk": (saved(rgb().convert("CMYK"), "JPEG", quality=100, subsampling=0), UPRIGHT),
    "animated webp": (animation("WEBP"), UPRIGHT),
    "animated png": (animation("PNG"), UPRIGHT),
    "two pages": (animation("TIFF"), UPRIGHT),
    "rgba": (saved(transparent("RGBA")), ON_WHITE),
    "rgba webp": (saved(transparent("RGBA"), "WEBP", lossless=True), ON_WHITE),
    "grey and alpha": (saved(transparent("LA")), ON_WHITE),
    "palette and tRNS": (palette_with_transparency(), BAR),
    "grey and tRNS": (saved(Image.fromarray(scene(ground=9)), transparency=9), GREY),
    "16-bit grey": (saved(deep_grey()[0]), GREY),
    "16-bit tiff": (saved(deep_grey()[0], "TIFF"), GREY),
    "float 0..1": (float_tiff(1), GREY),
    "float 0..255": (float_tiff(255), GREY),
    "float 0..65535": (float_tiff(65535), GREY),
    **{
        f"turned {n} {kind}": (saved(rgb(), kind, exif=exif(n), **options), np.asarray(turned))
        for kind, options in (
            ("JPEG", {"quality": 100, "subsampling": 0}),
            ("PNG", {}),
            ("TIFF", {}),
            ("WEBP", {"lossless": True}),
        )
        for n, turned in (
            (3, rgb().rotate(180)),
            (6, rgb().rotate(-90, expand=True)),
            (7, rgb().transpose(Image.Transpose.TRANSVERSE)),
        )
    },
    "turned by XMP": (
        saved(rgb(), "WEBP", lossless=True, xmp=b'<x tiff:Orientation="6"/>'),
        np.asarray(rgb().rotate(-90, expand=True)),
    ),
    "turned behind its pixels": (late_exif(), np.asarray(rgb().rotate(-90, expand=True))),
}


@pytest.fixture(scope="module")
def processor():
    """The packaged model's, as the policy's."""
    return AutoProcessor.from_pretrained(model_dir())


@pytest.fixture(scope="module")
def policy(processor, tmp_path_factory):
    """Rows of the data set for stored images, and what an agent loop makes of them."""
    path = tmp_path_factory.mktemp("policy") / "rows.parquet"
    chat = [{"role": "user", "content": "<image>What colour is it?"}]
    rows = [
        {"prompt": chat, "images": [{"bytes": data, "path": None}]} for data, _ in FILES.values()
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    config = OmegaConf.create({"max_prompt_length": 512, "filter_overlong_prompts": False})
    return VapoDataset(str(path), processor.tokenizer, config, processor)


def close(image, expected, tolerance=4):
    """JPEG and 8-bit alpha round; nothing else may differ."""
    pixels = np.asarray(image).astype(int)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= tolerance


@pytest.mark.parametrize("name", FILES)
def test_every_consumer_has_the_same_pixels(name, policy, processor, tmp_path, write, row):
    data, expected = FILES[name]
    image = load_image(data)
    assert image.mode == "RGB"
    close(image, expected)
    same = image.tobytes()

    messages = pickle.loads(pickle.dumps(policy[list(FILES).index(name)]["raw_prompt"]))
    part = messages[0]["content"][0]
    assert part["image"].size == image.size
    assert part["image"].tobytes() == same
    seen, _ = asyncio.run(policy.process_vision_info(messages, 14, policy.config))
    # veRL resizes to multiples of 28, which these sizes are
    assert seen[0].tobytes() == same
    inputs = [
        processor(text=[processor.image_token], images=[each], return_tensors="pt")
        for each in (seen[0], image)
    ]
    assert inputs[0]["pixel_values"].equal(inputs[1]["pixel_values"])

    sent = prepare(data, media_type(data))
    endpoint = Image.open(io.BytesIO(sent.data))  # as plain a decoder as there is
    assert endpoint.convert("RGB").tobytes() == same
    assert not endpoint.getexif()

    page, report = page_image(data), image_uri(data)
    (sample,) = small_images(image_parts(messages))
    for encoded in (base64.b64decode(page.uri.partition(",")[2]), sample):
        if encoded.startswith(b"\x89PNG"):
            assert Image.open(io.BytesIO(encoded)).tobytes() == same
        else:
            close(Image.open(io.BytesIO(encoded)), np.asarray(image), tolerance=32)  # JPEG again
    assert report.startswith("data:image/png")
    assert base64.b64decode(report.partition(",")[2]) == sample

    assert open_image(data).tobytes() == same
    assert image_size(data) == image.size
    header = read_header(data)
    assert not header.has_exact_size or (header.width, header.height) == image.size
    check_parquet(write([row(images=[{"bytes": data, "path": None}])]), decode_images=True)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_transparent_grey_of_few_bits_is_meant_in_its_own_bits(bits):
    """Pillow scales the pixels of such a file, and not the transparent value."""
    width, top = 8, 2**bits - 1
    line = bytes([0]) + bytes([255] * (width * bits // 8))  # all pixels have the value `top`
    white = load_image(raw_png(bits, 0, line, transparent=[top], width=width))
    assert np.asarray(white).min() == 255
    zeros = bytes(len(line))
    for value, shown in ((0, 255), (top, 0)):
        image = load_image(raw_png(bits, 0, zeros, transparent=[value], width=width))
        assert np.asarray(image).min() == np.asarray(image).max() == shown


def test_a_transparent_colour_of_16_bits():
    line = bytes([0]) + struct.pack(">6H", 40000, 300, 0, 0, 0, 65535)
    image = load_image(raw_png(16, 2, line, transparent=[40000, 300, 0], width=2))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_a_transparent_grey_of_16_bits():
    line = bytes([0]) + struct.pack(">2H", 500, 65535 // 2)
    image = load_image(raw_png(16, 0, line, transparent=[500], width=2))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255,) * 3, (127,) * 3]


def raw_png(bits, colour_type, line, *, transparent, width):
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colour_type, 0, 0, 0)),
            chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)),
            chunk(b"IDAT", zlib.compress(line)),
            chunk(b"IEND", b""),
        )
    )


def entries(path, data):
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    return {
        "bytes": data,
        "path": str(path),
        "path object": path,
        "file address": path.as_uri(),
        "data uri": uri,
        "bytes field": {"bytes": data, "path": None},
        "path field": {"bytes": None, "path": str(path)},
        "image field": {"image": str(path)},
        "bytes as image": {"image": data},
        "uri as path": {"bytes": None, "path": uri},
        "pil": Image.open(path),
        "pil field": {"image": Image.open(path)},
        "array": np.asarray(Image.open(path)),
    }


def test_every_form_of_an_entry(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(saved(rgb()))
    for form, entry in entries(path, path.read_bytes()).items():
        assert load_image(entry).tobytes() == rgb().tobytes(), form


def test_arrays_are_scaled_by_their_type():
    grey = scene()
    forms = (grey, grey[:, :, None], GREY, grey.astype(np.uint16) * 257, grey / 255, GREY / 255.0)
    for values in forms:
        assert np.array_equal(np.asarray(load_image(values)), GREY)
    assert np.array_equal(np.asarray(load_image(scene() == 0)), 255 - BAR)
    with pytest.raises(BadCell, match=r"shape \(3, 84, 56\).*height x width x channels"):
        load_image(GREY.transpose(2, 0, 1))
    with pytest.raises(BadCell, match=r"int64.*uint8"):
        load_image(grey.astype(np.int64))
    with pytest.raises(BadCell, match="empty"):
        load_image(np.zeros((0, 4), np.uint8))


def test_an_image_of_the_image_feature_is_turned_once(processor, row, tmp_path):
    """`datasets` would decode such a column, and apply EXIF itself."""
    import datasets

    cells = [{"bytes": FILES[name][0], "path": None} for name in ("turned 6 JPEG", "rgba")]
    table = datasets.Dataset.from_list(
        [{**row(), "images": [cell]} for cell in cells],
    ).cast_column("images", datasets.List(datasets.Image()))
    path = tmp_path / "rows.parquet"
    table.to_parquet(path)
    for limits in ({}, {"max_pixels": 10**6}):
        config = OmegaConf.create({"filter_overlong_prompts_workers": None, **limits})
        data = VapoDataset(str(path), processor.tokenizer, config, processor)
        for number, cell in enumerate(cells):
            part = data[number]["raw_prompt"][0]["content"][0]
            assert part["image"].tobytes() == load_image(cell).tobytes()


@pytest.mark.parametrize("values", [[-1.0, 1.0], [np.nan, 1.0], [0.0, 1e9]])
def test_floats_without_a_scale_are_refused(values):
    data = saved(Image.fromarray(np.array([values], np.float32)), "TIFF")
    with pytest.raises(BadCell, match=r"values go from .*8 or 16 bits"):
        load_image(data)


def test_images_of_bad_sizes_are_refused_with_a_fix(monkeypatch, tmp_path):
    long = tmp_path / "long.png"
    long.write_bytes(saved(Image.new("L", (1001, 5))))
    with pytest.raises(BadCell, match=r"1001 x 5 pixels, ratio over 200; pad or crop"):
        load_image(long)
    large = tmp_path / "large.png"
    large.write_bytes(saved(Image.new("1", (1000, 1000))))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    for look in (load_image, lambda path: check_image(str(path))):
        with pytest.raises(BadCell, match=r"large.png.*decompression bomb.*replace"):
            look(large)
    with pytest.raises(BadCell, match="0 x 4 pixels, empty"):
        load_image(Image.new("RGB", (0, 4)))


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (None, "an image is null"),
        ("", "an image is ''"),
        ({"bytes": None, "path": None}, "write a path"),
        ("https://example.org/a.png", "an address"),
        ("absent.png", "absent.png"),
        (b"no image", "cannot read 8 bytes"),
        ("data:image/png;base64,@@", "data URI"),
        ("data:nothing", "no comma"),
    ],
)
def test_what_is_no_image_is_refused(entry, found):
    with pytest.raises(BadCell, match=found):
        load_image(entry)


def test_an_unreadable_orientation_is_none():
    data = saved(rgb(), "JPEG", exif=b"Exif\0\0rubbish that is no TIFF header")
    assert load_image(data).size == (WIDTH, HEIGHT)


def test_a_header_that_does_not_tell_the_size_says_so(policy):
    """The overlong filter decodes such a row."""
    row = {
        "prompt": [{"role": "user", "content": "<image>What?"}],
        "images": [{"bytes": FILES["turned behind its pixels"][0], "path": None}],
    }
    with pytest.raises(NotFromHeaders, match="PNG"):
        policy.prompt_length(row)


@pytest.mark.parametrize("seed", range(12))
def test_damaged_files_are_refused_and_nothing_else_happens(seed):
    rng = np.random.default_rng(seed)
    for data, _ in FILES.values():
        damaged = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(0, len(damaged), size=4)
        damaged[places] = rng.integers(0, 256, size=4)
        for part in (damaged.tobytes(), data[: rng.integers(1, len(data))]):
            with contextlib.suppress(BadCell):
                load_image(part)
            with contextlib.suppress(BadCell):
                prepare(part, "image/png")
            image_uri(part)


def test_a_damaged_image_is_told_with_file_and_row_in_a_run(processor, row, write):
    data = FILES["jpeg"][0]
    path = write([row(), row(images=[{"bytes": data[: len(data) // 2], "path": None}])])
    config = OmegaConf.create({"filter_overlong_prompts_workers": None})
    dataset = VapoDataset(str(path), processor.tokenizer, config, processor)
    messages = dataset[1]["raw_prompt"]
    with pytest.raises(RowError, match=r"row 1 of .*train.parquet.*truncated.*drop the row"):
        asyncio.run(dataset.process_vision_info(messages, 14, config))


def test_an_image_stays_encoded_on_its_way():
    noise = Image.effect_noise((280, 280), 60).convert("RGB")
    data = saved(noise, "JPEG", quality=60)
    image = StoredImage(data)
    image.load()
    assert len(pickle.dumps(image)) < len(data) + 300 < 280 * 280 * 3 / 4
    again = pickle.loads(pickle.dumps(image))
    assert again.tobytes() == image.tobytes() == load_image(data).tobytes()
    assert fetch_image({"image": again}).size == again.size == (280, 280)


def test_the_check_counts_what_is_not_shown_as_stored(write, row):
    names = ("turned 6 JPEG", "rgba", "palette and tRNS", "16-bit grey", "png")
    path = write([row(images=[{"bytes": FILES[name][0], "path": None}]) for name in names])
    report = check_parquet(path)
    counts = (report.images_turned, report.images_transparent, report.images_deep)
    assert counts == (1, 2, 1)
    for words in ("1 image turned by EXIF", "2 images transparent, shown on white", "1 image of"):
        assert words in str(report)


def test_no_other_module_opens_images():
    assert set(opening_calls()) == {OPENER}


def opening_calls():
    """Modules of the package that decode an image by themselves, and by which call."""
    for path in sorted(ROOT.rglob("*.py")):
        names = {"Image", "PIL.Image"}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "PIL":
                names |= {alias.asname or alias.name for alias in node.names}
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names]
                modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if IMAGE_LIBRARIES & {module.split(".")[0] for module in modules}:
                    yield str(path.relative_to(ROOT.parent))
            if not isinstance(node, ast.Call):
                continue
            called, _, method = ast.unparse(node.func).rpartition(".")
            if called == "torch":  # tensors, as weights in shared memory
                continue
            if (method == "open" and called in names) or method in DECODERS:
                yield str(path.relative_to(ROOT.parent))


def test_no_consumer_is_left_out():
    openers = {"load_image", "read_header", "check_image", "resized", "StoredImage"}
    found = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("vapo_verl.data.")
        and openers & {alias.name for alias in node.names}
    }
    assert found == set(CONSUMERS)


def black_bar(mode):
    """13 of 84 lines are black, the rest is transparent, and black below."""
    alpha = np.zeros((84, 56), np.uint8)
    alpha[:13] = 255
    if mode in ("P", "grey", "rgb"):
        drawn = Image.fromarray((alpha == 0).astype(np.uint8) * 7, "P" if mode == "P" else "L")
        if mode == "P":
            drawn.putpalette([0] * 30)
        transparent = (7, 7, 7) if mode == "rgb" else 7
        return saved(drawn.convert("RGB") if mode == "rgb" else drawn, transparency=transparent)
    la = Image.merge("LA", [Image.new("L", (56, 84)), Image.fromarray(alpha)])
    return saved(la if mode == "LA" else la.convert(mode))


def seen_by_all(data, folder, processor, row, feature=False):
    """Consumer -> the image that it shows to a model or a person."""
    import datasets

    table = datasets.Dataset.from_list([{**row(), "images": [{"bytes": data, "path": None}]}])
    if feature:
        table = table.cast_column("images", datasets.List(datasets.Image()))
    path = folder / "rows.parquet"
    table.to_parquet(path)
    config = OmegaConf.create({"filter_overlong_prompts_workers": None, "max_pixels": 10**6})
    policy = VapoDataset(str(path), processor.tokenizer, config, processor)
    messages = policy[0]["raw_prompt"]
    (image,), _ = asyncio.run(policy.process_vision_info(messages, 14, config))
    pixels = processor(text=[processor.image_token], images=[image], return_tensors="pt")
    yield "policy", image
    yield "processor", from_patches(pixels, processor.image_processor)
    for limit in (None, 10**6, 84 * 56 - 1):
        picture = prepare(data, media_type(data), limit)
        (part, _) = vote_messages(picture, "It is black.")[0]["content"]
        yield f"claims, --max-pixels {limit}", from_uri(part["image_url"]["url"])
    yield "audit", from_uri(page_image(data).uri)
    yield "report", from_uri(image_uri(data))
    (sample,) = small_images(image_parts(messages))
    yield "samples", Image.open(io.BytesIO(sample))
    yield "probing", resized(open_image(data), patch_size=14, max_pixels=10**6)
    (stored,) = read_rows(path, num_rows=None, seed=0, answer_style="math")
    yield "evaluation", open_image(stored.images[0])


def from_uri(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def from_patches(inputs, image_processor):
    """The image that a processor cut into patches of two equal frames."""
    (_, height, width) = inputs["image_grid_thw"][0].tolist()
    merge, side = image_processor.merge_size, image_processor.patch_size
    patches = (
        inputs["pixel_values"]
        .numpy()
        .reshape(height // merge, width // merge, merge, merge, 3, 2, side, side)
    )
    image = (
        patches[:, :, :, :, :, 0]
        .transpose(0, 2, 5, 1, 3, 6, 4)
        .reshape(height * side, width * side, 3)
    )
    mean, std = np.array(image_processor.image_mean), np.array(image_processor.image_std)
    return Image.fromarray(np.rint((image * std + mean) * 255).astype(np.uint8))


@pytest.mark.parametrize("feature", [False, True])
@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "grey", "rgb"])
def test_a_black_bar_on_a_transparent_ground_is_on_white_for_all(
    mode, feature, tmp_path, processor, row
):
    for name, image in seen_by_all(black_bar(mode), tmp_path, processor, row, feature):
        assert abs(np.asarray(image.convert("RGB")).mean() - 216) <= 1, name


@pytest.mark.parametrize("feature", [False, True])
def test_a_turned_photograph_is_upright_for_all(feature, tmp_path, processor, row):
    data = saved(rgb(), "JPEG", exif=exif(6), quality=100, subsampling=0)
    for name, image in seen_by_all(data, tmp_path, processor, row, feature):
        shrunk = str(84 * 56 - 1) in name
        assert image.size == ((83, 55) if shrunk else (84, 56)), name


@pytest.mark.parametrize("kind", ["PPM", "TGA", "JPEG2000", "AVIF", "ICO", "PCX", "DDS"])
def test_a_rare_format_is_opened_by_all_or_by_none(kind, tmp_path, processor, row):
    data = saved(rgb(), kind, **({"sizes": [(56, 84)]} if kind == "ICO" else {}))
    expected = np.asarray(load_image(data))
    assert expected.shape == UPRIGHT.shape
    for name, image in seen_by_all(data, tmp_path, processor, row):
        if str(84 * 56 - 1) not in name:
            assert np.abs(np.asarray(image.convert("RGB"), int) - expected).max() <= 1, name


@pytest.mark.parametrize("seed", range(300))
def test_an_image_that_cannot_be_resized_is_known_before(seed):
    """Against qwen_vl_utils, which fails on some long images under a limit."""
    rng = np.random.default_rng(seed)
    width = int(rng.integers(1, 4000))
    height = int(rng.integers(max(width // 200, 1), min(width * 200, 4000) + 1))
    if max(width, height) > 200 * min(width, height):
        return
    patch_size = int(rng.choice([14, 16]))
    options = {"max_pixels": int(rng.choice([4096, 12544, 50176, 200704, 10**6]))}
    if rng.random() < 0.3:
        options = image_options({"max_pixels": int(rng.integers(1, 4096))})
    frame = Frame((width, height))
    try:
        check_resize(width, height, factor=2 * patch_size, **options)
    except BadCell:
        with pytest.raises(ValueError, match="empty"):
            resized(frame, patch_size=patch_size, **options)
    else:
        assert min(resized(frame, patch_size=patch_size, **options).size) > 0
