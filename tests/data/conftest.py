"""Small files of the shapes the data code meets."""

import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<|image_pad|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
)
IMAGE_TYPE = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def _png(color: str = "red", size: tuple[int, int] = (56, 56)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """Encoded one-colour image: png(color, (width, height))."""
    return _png


@pytest.fixture(scope="session")
def row() -> Callable[..., dict]:
    """A good row of our format; keyword arguments replace its cells."""

    def make(**cells) -> dict:
        return {
            "prompt": [{"role": "user", "content": "<image>What colour is it?"}],
            "images": [{"bytes": _png(), "path": None}],
            "data_source": "colours",
            "reward_model": {"style": "rule", "ground_truth": "red"},
            "extra_info": {"split": "train", "index": 0},
            "claims": [{"text": "It is red.", "label": True}, {"text": "Blue.", "label": False}],
        } | cells

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write rows to a parquet file in tmp_path; the types are inferred unless a schema is given."""

    def write_rows(rows: list[dict], name: str = "train.parquet", schema=None) -> Path:
        path = tmp_path / name
        pq.write_table(pa.Table.from_pylist(rows, schema), path)
        return path

    return write_rows


@pytest.fixture
def thinker_row() -> Callable[..., dict]:
    """A row of the released claim set: claim i is true for odd i."""

    def make(**cells) -> dict:
        claims = {f"claim_{i}": f"Claim number {i}." for i in range(1, 21)}
        labels = {f"label_{i}": "CORRECT" if i % 2 else "WRONG" for i in range(1, 21)}
        images = [{"bytes": _png(), "path": "images/1.png"}]
        basics = {"problem": "<image>What colour is it?", "answer": "red", "images": images}
        return basics | claims | labels | cells

    return make


@pytest.fixture(scope="session")
def processor():
    """A Qwen2.5-VL processor with a byte-level tokenizer of no merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    special = ["<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    special.append("<|video_pad|>")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(special + alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=special[0],
        additional_special_tokens=special,
    )
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )
