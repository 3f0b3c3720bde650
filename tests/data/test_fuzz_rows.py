"""Bad rows of every kind: what the checks let through, a run can read and grade."""

import asyncio
import base64
import io
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from transformers import AutoProcessor

from vapo_verl.data.cells import RowRules
from vapo_verl.data.claims_column import read_claims
from vapo_verl.data.control_tokens import (
    MEDIA_WORDS,
    PROCESSOR_WORDS,
    QWEN_TOKENS,
    ControlTokens,
    added_tokens,
)
from vapo_verl.data.dataset import VapoDataset
from vapo_verl.data.errors import DataError, RowError
from vapo_verl.data.rows import check_parquet, write_usable
from vapo_verl.digits.model import model_dir
from vapo_verl.reward.accuracy import accuracy

KINDS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "F")
WORDS = (*QWEN_TOKENS, *MEDIA_WORDS, *PROCESSOR_WORDS, "<image>", "\0", "\ufdd0", "</think>", "é")


def an_image(rng):
    size = rng.choice([(56, 56), (1, 1), (28, 400), (3, 700), (84, 30)])
    mode, kind = rng.choice(MODES), rng.choice(KINDS)
    values = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (size[1], size[0]))
    image = Image.fromarray(values.astype(np.uint8))
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind)
    except (OSError, ValueError):  # not every format has every mode
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, kind)
    data = bytearray(buffer.getvalue())
    if rng.random() < 0.3:
        data = data[: rng.randrange(len(data) + 1)]
    for _ in range(rng.choice([0, 0, 0, 1, 3])):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def an_entry(rng, folder):
    data = an_image(rng)
    path = folder / f"{rng.randrange(10**9)}.img"
    if rng.random() < 0.8:
        path.write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    cut = uri[: rng.randrange(len(uri))]
    return {
        "bytes": rng.choice([data, data, None, b""]),
        "path": rng.choice([str(path), path.as_uri(), uri, cut, "", None, "~/no", "s3://a/b.png"]),
        "max_pixels": rng.choice([None, None, None, 784, 0, -1]),
        "min_pixels": rng.choice([None, None, None, 784, 10**6]),
    }


def a_text(rng):
    return " ".join(rng.choice(["What", "is", "it", "<b>", rng.choice(WORDS)]) for _ in range(4))


def a_prompt(rng, num_images):
    roles = ["user", "user", "system", "assistant", "human", "", "tool"]
    turns = [
        {"role": rng.choice(roles[: rng.choice([1, 4, 7])]), "content": a_text(rng)}
        for _ in range(rng.choice([0, 1, 1, 2]))
    ]
    marks = "<image>" * rng.choice([num_images, num_images, num_images, num_images + 1])
    return [*turns, {"role": rng.choice(roles[: rng.choice([1, 4])]), "content": marks + "What?"}]


def a_row(rng, folder):
    """A good row of which up to four cells are replaced by others."""
    images = [an_entry(rng, folder) for _ in range(rng.choice([0, 1, 1, 2, 3]))]
    buffer = io.BytesIO()
    Image.new("RGB", (56, 56), "red").save(buffer, "PNG")
    plain = {"bytes": buffer.getvalue(), "path": None, "max_pixels": None, "min_pixels": None}
    answers = ["4", "red", " ", "$$", "\\boxed{}", "\\boxed{4}", "$\\frac{1}{2}$", "", None, "**"]
    claims = [
        {
            "text": rng.choice(["It is red.", a_text(rng), "", None]),
            "label": rng.choice([True, None]),
        }
        for _ in range(rng.choice([0, 1, 2]))
    ]
    good = {
        "prompt": [{"role": "user", "content": "<image>What?"}],
        "images": [plain],
        "data_source": "x",
        "reward_model": {"style": "rule", "ground_truth": ["4"]},
        "extra_info": {"index": 1},
        "claims": [{"text": "It is red.", "label": True}],
        "videos": None,
    }
    style = rng.choice(["rule", "math", "exact", None, "Math", "exakt", ""])
    truths = rng.choice([[rng.choice(answers)], [], ["4", rng.choice(answers)], None])
    others = {
        "prompt": rng.choice([a_prompt(rng, 1), a_prompt(rng, 1), None]),
        "images": rng.choice([images[:1], images[:1], images, None]),
        "data_source": rng.choice(["", None]),
        "reward_model": {"style": style, "ground_truth": truths},
        "extra_info": rng.choice([{"index": rng.choice([0, 1, None])}, None]),
        "claims": rng.choice([claims, None]),
        "videos": ["clip.mp4"],
    }
    replaced = rng.sample([*others], rng.choice([0, 1, 1, 2, 4]))
    return good | {column: others[column] for column in replaced}


SCHEMA = pa.schema(
    {
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "images": pa.list_(
            pa.struct(
                {
                    "bytes": pa.binary(),
                    "path": pa.string(),
                    "max_pixels": pa.int64(),
                    "min_pixels": pa.int64(),
                }
            )
        ),
        "data_source": pa.string(),
        "reward_model": pa.struct({"style": pa.string(), "ground_truth": pa.list_(pa.string())}),
        "extra_info": pa.struct({"index": pa.int64()}),
        "claims": pa.list_(pa.struct({"text": pa.string(), "label": pa.bool_()})),
        "videos": pa.list_(pa.string()),
    }
)


@pytest.fixture(scope="module", params=["refuse", "text"])
def control_tokens(request):
    return request.param


@pytest.fixture(scope="module")
def processor(control_tokens):
    """The packaged model's, one for each way to read control tokens."""
    return AutoProcessor.from_pretrained(model_dir())


@pytest.fixture(scope="module")
def read(processor, control_tokens):
    """Ids, pixels and grade of a file's rows, as an agent loop makes them."""
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    def rows_of(path):
        config = OmegaConf.create(
            {
                "control_tokens": control_tokens,
                "filter_overlong_prompts": False,
                "max_prompt_length": 10**6,
            }
        )
        data = VapoDataset(str(path), processor.tokenizer, config, processor)
        builder = create_continuous_token_builder(
            processor.tokenizer, hf_model_type="qwen2_5_vl", processor=processor
        )
        for row in data:
            messages = row["raw_prompt"]
            images, *_ = asyncio.run(data.process_multi_modal_info(messages, 14, config))
            inputs: dict = {}
            ids = builder.build_initial_tokens(messages, images=images, mm_inputs_out=inputs)
            yield row, ids, inputs

    return rows_of


@settings(
    max_examples=6,
    derandomize=True,
    phases=[Phase.generate],  # a smaller seed is no simpler file
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_passes_can_be_read_and_graded(
    seed, read, processor, control_tokens, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("rows")
    rng = random.Random(seed)
    rows = [a_row(rng, folder) for _ in range(60)]
    path, usable = folder / "rows.parquet", folder / "usable.parquet"
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
    rules = RowRules(
        controls=ControlTokens(added_tokens(processor.tokenizer)),
        refuse_controls=control_tokens == "refuse",
        max_images=2,
        refuse_media=True,
    )
    report = check_parquet(path, rules=rules, skip_bad_rows=True)
    assert 0 < len(report.bad_rows) < len(rows)
    with pytest.raises(RowError) as caught:
        check_parquet(path, rules=rules)
    assert "Traceback" not in str(caught.value)
    num_usable = write_usable(path, usable, report)
    assert check_parquet(usable, rules=rules).num_rows == num_usable
    pads = processor.image_token_id
    num_read = 0
    for row, ids, inputs in read(usable):
        grid = inputs.get("image_grid_thw")
        num_features = 0 if grid is None else int(grid.prod(-1).sum()) // 4
        assert ids.count(pads) == num_features
        assert ids.count(processor.tokenizer.eos_token_id) == len(row["raw_prompt"])
        style = row["reward_model"]["style"]
        style = "math" if style in (None, "rule") else style
        truth = row["reward_model"]["ground_truth"]
        boxed = truth[0] if "boxed" in truth[0] else f"\\boxed{{{truth[0]}}}"
        assert accuracy(boxed, truth, style) == 1.0
        assert len(read_claims(row["claims"])) == len(row["claims"])
        assert int(row["index"]) >= 0
        num_read += 1
    assert num_read == num_usable


def test_the_generator_makes_good_rows_too(tmp_path):
    """Else the test above would show nothing."""
    rng = random.Random(1)
    rows = [a_row(rng, tmp_path) for _ in range(300)]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
    report = check_parquet(path, skip_bad_rows=True)
    num_good = len(rows) - len(report.bad_rows)
    assert 30 < num_good < 270
    assert len(report.dropped) > 12


def test_a_check_never_ends_in_another_error(tmp_path):
    """Cells of types that the format does not have."""

    odd = [None, 7, 2.5, "text", b"bytes", True, [], ["a"], [None], {"a": 1}, [{"a": 1}], [[1]]]
    good = {
        "prompt": [{"role": "user", "content": "What?"}],
        "images": None,
        "data_source": "x",
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": None,
        "claims": None,
        "videos": None,
    }
    for column in good:
        for cell in odd:
            path = tmp_path / "odd.parquet"
            pq.write_table(pa.Table.from_pylist([{**good, column: cell}]), path)
            try:
                check_parquet(path)
            except DataError as error:
                assert column in str(error)
    nested = [("reward_model", "ground_truth"), ("extra_info", "index"), ("reward_model", "style")]
    for column, name in nested:
        for cell in odd:
            path = tmp_path / "odd.parquet"
            filled = {**(good[column] or {}), name: cell}
            pq.write_table(pa.Table.from_pylist([{**good, column: filled}]), path)
            try:
                check_parquet(path)
            except DataError as error:
                assert column in str(error)
