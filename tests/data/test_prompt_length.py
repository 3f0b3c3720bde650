"""The overlong filter keeps veRL's rows, and decodes none of their images."""

import base64
import copy
import io
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image, ImageFile
from transformers import AutoProcessor
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.tokenizer import build_multimodal_processor_inputs

from vapo_verl.data.dataset import VapoDataset
from vapo_verl.data.prompt_length import Frame, NotFromHeaders
from vapo_verl.digits.model import model_dir

from .conftest import CHAT_TEMPLATE

TURNED = 6
"""EXIF orientation of a camera held upright: shown with width and height exchanged."""


@contextmanager
def decoded_images():
    """The sizes of the images that Pillow decodes meanwhile, in this process."""
    sizes = []
    plain = ImageFile.ImageFile.load

    def load(self):
        if self.tile:
            sizes.append(self.size)
        return plain(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", load)
        yield sizes


def encoded(size, image_format="JPEG", orientation=None, mode="RGB"):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new(mode, size, "white").save(buffer, image_format, **({"exif": exif} if exif else {}))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def packaged():
    """The packaged model's processor: it resizes again, to 784 - 50176 pixels."""
    return AutoProcessor.from_pretrained(model_dir())


def make(cls, processor, path, **options):
    """A data set, with veRL's filter or with ours."""
    config = OmegaConf.create(
        {"filter_overlong_prompts_workers": None, "max_prompt_length": 64, **options}
    )
    return cls(str(path), processor.tokenizer, config, processor)


class WithVerlsFilter(VapoDataset):
    """Our rows through veRL's own filter."""

    maybe_filter_out_long_prompts = RLHFDataset.maybe_filter_out_long_prompts


def kept(dataset):
    return [row["extra_info"]["index"] for row in dataset.dataframe]


side = st.integers(1, 700)
sizes = st.tuples(side, side) | st.sampled_from([(1, 1), (27, 29), (2, 401), (1, 200), (3, 600)])
pictures = st.tuples(
    sizes,
    st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]),
    st.sampled_from([None, None, 2, 3, 5, TURNED, 8]),
)
LIMITS = [(None, None), (784, 3136), (20_000, 50_000), (None, 30_000), (9_000, None)]


@pytest.fixture(scope="module", params=["qwen2.5-vl", "packaged"])
def datasets(request, processor, packaged, row, tmp_path_factory):
    """One data set for each pair of pixel limits."""
    chosen = packaged if request.param == "packaged" else processor
    path = tmp_path_factory.mktemp("limits") / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([row()]), path)
    return {
        limits: make(VapoDataset, chosen, path, min_pixels=limits[0], max_pixels=limits[1])
        for limits in LIMITS
    }


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    images=st.lists(pictures, max_size=3),
    limits=st.sampled_from(LIMITS),
    words=st.text(max_size=30),
)
def test_the_length_from_headers_is_that_of_the_processor(datasets, images, limits, words):
    dataset, cells = datasets[limits], [encoded(*image) for image in images]

    def row():
        prompt = [{"role": "user", "content": "<image>" * len(cells) + words}]
        return {"prompt": prompt, "images": [{"bytes": cell, "path": None} for cell in cells]}

    with decoded_images() as decoded:
        length = length_or_error(dataset.prompt_length, row())
    assert decoded == []
    assert length == length_or_error(lambda row: processor_length(dataset, row), row())


def length_or_error(measure, row):
    try:
        return measure(row)
    except (ValueError, OSError, IndexError, AssertionError) as error:
        return "refused" if not isinstance(error, NotFromHeaders) else error


def processor_length(dataset, row):
    """What veRL's filter computes for a row."""
    messages = dataset._build_messages(row, key="prompt")
    processor = dataset.processor
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images, *_ = dataset._process_multi_modal_info(messages, dataset.image_patch_size, None)
    if images is None:
        return len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])
    inputs = build_multimodal_processor_inputs(processor, text=[text], images=images)
    return len(inputs["input_ids"][0])


def question(images, text="What?"):
    return [{"role": "user", "content": "<image>" * images + text}]


@pytest.fixture
def mixed_rows(row, tmp_path):
    """Rows of every kind that can be read, about half of them longer than 64 tokens."""
    (tmp_path / "wide.jpg").write_bytes(encoded((900, 60), orientation=TURNED))
    (tmp_path / "small.png").write_bytes(encoded((56, 56), "PNG", mode="RGBA"))
    by_path = {"bytes": None, "path": str(tmp_path / "wide.jpg")}
    by_url = {"bytes": None, "path": f"file://{tmp_path / 'small.png'}"}
    address = "data:image/png;base64," + base64.b64encode(encoded((56, 56), "PNG")).decode()
    cells = [
        {"images": [{"bytes": encoded((w, h), form), "path": None}]}
        for w, h in ((56, 56), (57, 97), (500, 500), (5, 640), (640, 5), (2000, 11))
        for form in ("JPEG", "PNG", "ICO" if max(w, h) <= 256 else "WEBP")
    ]
    cells += [
        {"images": [by_path]},
        {"images": [by_url]},
        {"images": [{"bytes": None, "path": address}]},
        {"images": [by_url, by_path, by_url], "prompt": question(3)},
        {"images": [by_url] * 2, "prompt": question(2, "x" * 40)},
        {"images": [], "prompt": question(0, "No image.")},
        {"images": None, "prompt": question(0, "x" * 80)},
        {"images": [by_url], "prompt": question(1, "a literal <|image_pad|>")},
    ]
    return [row(extra_info={"index": i}, **cell) for i, cell in enumerate(cells)]


@pytest.mark.parametrize("limits", LIMITS)
def test_the_rows_that_are_kept_are_those_of_verls_filter(
    processor, mixed_rows, write, limits, capsys
):
    path = write(mixed_rows)
    options = {"min_pixels": limits[0], "max_pixels": limits[1]}
    verls = kept(make(WithVerlsFilter, processor, path, **options))
    capsys.readouterr()
    ours = kept(make(VapoDataset, processor, path, **options))
    assert ours == verls
    assert 0 < len(ours) < len(mixed_rows)
    said = capsys.readouterr().out
    assert f"data.max_prompt_length=64: {len(ours)} of {len(mixed_rows)} rows are used" in said
    if limits == (None, None):  # two icons, a literal placeholder
        assert "images of 3 rows decoded" in said


def test_rows_are_measured_by_as_many_processes_as_configured(processor, row, write):
    sizes = [(28 * i, 28 * j) for i in range(1, 13) for j in range(1, 7)]
    rows = [
        row(images=[{"bytes": encoded(size), "path": None}], extra_info={"index": i})
        for i, size in enumerate(sizes)
    ]
    path = write(rows)
    alone = kept(make(VapoDataset, processor, path))
    together = make(VapoDataset, processor, path, filter_overlong_prompts_workers=2)
    assert together.num_workers == 2
    assert kept(together) == alone
    fixed = len("user: What colour is it?")
    assert alone == [i for i, (w, h) in enumerate(sizes) if fixed + max(w * h // 784, 4) <= 64]


class ToolsOf:
    """A mixin: tools as veRL loads them before it reads the data."""

    def _download(self, *arguments, **options):
        self.tool_schemas = [{"function": {"name": "zoom"}}]
        super()._download(*arguments, **options)


@pytest.mark.parametrize("tools", [(), (ToolsOf,)])
@pytest.mark.parametrize("options", [{}, {"brief": True}])
def test_tools_and_options_of_the_chat_template_count(processor, row, write, options, tools):
    given = copy.copy(processor)
    given.chat_template = (
        "{% for tool in tools or [] %}{{ tool['function']['name'] }}{% endfor %}"
        "{% if brief %}!{% else %}---------{% endif %}" + CHAT_TEMPLATE
    )
    path = write([row(extra_info={"index": i}, prompt=question(1, "x" * i)) for i in range(60)])
    ours, verls = (
        kept(make(type("Data", (*tools, cls), {}), given, path, apply_chat_template_kwargs=options))
        for cls in (VapoDataset, WithVerlsFilter)
    )
    assert ours == verls
    fixed = len("user: ") + 4 + (1 if options else 9) + (4 if tools else 0)  # 4: the image
    assert len(ours) == 64 - fixed + 1


def test_a_row_that_cannot_be_read_is_left_out_as_in_verl_and_named(
    processor, row, write, tmp_path, capsys
):
    cells = [
        {},
        {"images": [{"bytes": b"no image", "path": None}]},
        {"images": [{"bytes": None, "path": str(tmp_path / "absent.png")}]},
        {"prompt": question(2)},
        {"images": [{"bytes": encoded((1000, 2), "PNG"), "path": None}]},
    ]
    path = write([row(extra_info={"index": i}, **cell) for i, cell in enumerate(cells)])
    ours = make(VapoDataset, processor, path)
    said = capsys.readouterr().out
    assert kept(ours) == kept(make(WithVerlsFilter, processor, path)) == [0]
    for words in (
        "Row 1 of ['" + str(path) + "'] is left out: column 'images': cannot identify",
        "Row 2 of ['" + str(path) + "'] is left out: column 'images': [Errno 2]",
        "Row 3 of ['" + str(path) + "'] is left out: AssertionError: image_offset",
        "Row 4 of ['" + str(path) + "'] is left out: column 'images': absolute aspect ratio",
        "4 are refused by the processor",
    ):
        assert words in said, said


def test_no_image_is_decoded_where_headers_tell(processor, row, write):
    path = write([row(images=[{"bytes": encoded((400, 300)), "path": None}]) for _ in range(20)])
    with decoded_images() as ours:
        make(VapoDataset, processor, path, max_prompt_length=500)
    with decoded_images() as verls:
        make(WithVerlsFilter, processor, path, max_prompt_length=500)
    assert (len(ours), len(verls)) == (0, 20)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mm_processor_kwargs": {"max_pixels": 3136}}, "data.mm_processor_kwargs is set"),
        ({"filter_overlong_prompts": False}, ""),
    ],
)
def test_settings_that_headers_know_nothing_of_leave_it_to_verl(
    processor, mixed_rows, write, capsys, options, said
):
    path = write(mixed_rows[:6])
    ours = make(VapoDataset, processor, path, **options)
    assert said in capsys.readouterr().out
    assert kept(ours) == kept(make(WithVerlsFilter, processor, path, **options))


def test_another_kind_of_processor_is_left_to_verl(processor, row, write, capsys):
    class Other(type(processor)):
        pass

    other = copy.copy(processor)
    other.__class__ = Other
    make(VapoDataset, other, write([row()]))
    assert "Other is not a processor of Qwen-VL" in capsys.readouterr().out


def test_an_empty_frame_cannot_be_made():
    with pytest.raises(ValueError, match="0 x 28 pixels"):
        Frame((5, 1)).resize((0, 28))
