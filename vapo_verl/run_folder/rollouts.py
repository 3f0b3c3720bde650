"""Sampled rollouts of a run: schema, images, writer, and a reader of a few rows at a time."""

import base64
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vapo_verl.data.images import IMAGE_ERRORS, StoredImage, is_remote, load_image
from vapo_verl.run_folder.layout import ROLLOUT_FOLDER, named_failure

T = TypeVar("T")
BATCH_ROWS = 32
_LEFT_OUT = {"prompt_ids", "response_ids", "advantages", "rollout_log_probs", "old_log_probs"}
LAYERS_KEY = "visual_attention_layers"
MAX_IMAGES = 4
"""Images kept of one prompt, the first ones."""
MAX_SIDE = 512
"""Longer sides are scaled down to this many pixels."""
_LOSSLESS_SIDE = 128
_JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardParts:
    """The reward of a response and its parts; None for a part that the file does not hold."""

    accuracy: float | None = None
    format: float | None = None
    perception: float | None = None
    total: float | None = None


ROLLOUT_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("uid", pa.string()),
        ("sample", pa.int64()),
        ("data_source", pa.string()),
        ("index", pa.int64()),
        ("prompt", pa.string()),
        ("images", pa.list_(pa.binary())),  # PNG or JPEG, scaled down; null where unreadable
        ("response", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("tokens", pa.list_(pa.string())),
        ("visual_attention", pa.list_(pa.float32())),
        ("visual_attention_layers", pa.list_(pa.list_(pa.float32()))),  # [tokens][layers] or null
        ("advantages", pa.list_(pa.float32())),
        ("rollout_log_probs", pa.list_(pa.float32())),
        ("old_log_probs", pa.list_(pa.float32())),
        ("min_policy_version", pa.int64()),  # the step that made the oldest weights
        ("max_policy_version", pa.int64()),
        ("probe_policy_version", pa.int64()),  # null without probes
        ("ground_truth", pa.string()),
        (
            "reward",
            pa.struct([(part.name, pa.float64()) for part in fields(RewardParts)]),
        ),
        (
            "anchors",
            pa.list_(
                pa.struct(
                    [
                        ("position", pa.int64()),
                        ("claim", pa.string()),
                        ("label", pa.bool_()),
                        ("answer", pa.bool_()),
                        ("correct", pa.bool_()),
                        ("p_yes", pa.float64()),
                    ]
                )
            ),
        ),
    ]
)
"""One row per sampled response; positions count its tokens."""
_COLUMNS = [name for name in ROLLOUT_SCHEMA.names if name not in _LEFT_OUT]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutAnchor:
    """A claim probed along a response; None for a value that the file does not hold."""

    position: int | None = None
    """Tokens of the response before the cut."""
    claim: str = ""
    label: bool | None = None
    answer: bool | None = None
    """The prediction: true for yes."""
    correct: bool | None = None
    p_yes: float | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """One row of a rollout file, by the columns of :data:`ROLLOUT_SCHEMA`.

    A cell becomes a Python object when its property is read, so that a row that is only counted
    costs little. If the file has no such column, as in earlier versions, or the cell is null, a
    number is None, a text "", a sequence empty, and `reward` has no part.
    """

    batch: pa.RecordBatch
    row: int
    layers: tuple[int, ...] = ()
    """The model's layers in the columns of `layer_attention`; empty where the file names none."""

    @property
    def step(self) -> int | None:
        return self._cell("step")

    @property
    def uid(self) -> str:
        return self._cell("uid") or ""

    @property
    def sample(self) -> int | None:
        return self._cell("sample")

    @property
    def data_source(self) -> str:
        return self._cell("data_source") or ""

    @property
    def index(self) -> int | None:
        return self._cell("index")

    @property
    def prompt(self) -> str:
        return self._cell("prompt") or ""

    @property
    def images(self) -> list[bytes]:
        """The prompt's images that could be read, encoded."""
        return [image for image in self._cell("images") or [] if image]

    @property
    def response(self) -> str:
        return self._cell("response") or ""

    @property
    def tokens(self) -> list[str]:
        """Text of each token of the response."""
        return [token or "" for token in self._cell("tokens") or []]

    @property
    def ground_truth(self) -> str:
        return self._cell("ground_truth") or ""

    @property
    def reward(self) -> RewardParts:
        return _record(RewardParts, self._cell("reward") or {})

    @property
    def anchors(self) -> list[RolloutAnchor]:
        """By ascending position."""
        return [_record(RolloutAnchor, anchor) for anchor in self._cell("anchors") or []]

    def num_tokens(self) -> int:
        """Tokens of the response, or values of its visual attention where it has no tokens."""
        cell = self._scalar("tokens")
        length = 0 if cell is None or not cell.is_valid else len(cell.values)
        return length or len(self.attention())

    def attention(self) -> np.ndarray:
        """Visual attention ratio [tokens], nan where unknown; empty where none was exported."""
        cell = self._scalar("visual_attention")
        return np.empty(0) if cell is None or not cell.is_valid else _floats(cell.values)

    def layer_attention(self) -> np.ndarray | None:
        """[tokens, layers], or None where it was not exported or its rows differ in length."""
        cell = self._scalar("visual_attention_layers")
        if cell is None or not cell.is_valid or len(cell.values) == 0:
            return None
        values = _floats(cell.values.flatten())
        num_tokens = len(cell.values)
        lengths = np.asarray(cell.values.value_lengths())
        if np.any(lengths != lengths[0]) or len(values) == 0:
            return None
        return values.reshape(num_tokens, -1)

    def _cell(self, name: str) -> Any:
        cell = self._scalar(name)
        return None if cell is None else cell.as_py()

    def _scalar(self, name: str) -> Any:
        index = self.batch.schema.get_field_index(name)
        return None if index < 0 else self.batch.column(index)[self.row]


def rollout_files(run_dir: Path, steps: range | None = None) -> list[Path]:
    """Files of finished steps, or of those in `steps`; unfinished ones have another suffix."""
    if steps is not None:
        named = (rollout_file(run_dir, step) for step in steps)
        return [path for path in named if path.exists()]
    return sorted((run_dir / ROLLOUT_FOLDER).glob("step_*.parquet"))


def read_rollouts(files: Sequence[Path], problems: list[str]) -> Iterator[Rollout]:
    """All rows of the files. A file that cannot be read adds a line to `problems`."""
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                columns = [name for name in _COLUMNS if name in schema.names]
                layers = _layers(schema)
                for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
                    yield from (Rollout(batch, row, layers) for row in range(batch.num_rows))
        except (pa.ArrowException, OSError, ValueError) as error:
            problems.append(f"{path} cannot be read and is left out: {error}")


def _record(kind: type[T], cell: Mapping[str, Any]) -> T:
    """The struct as a dataclass; its defaults replace null and absent fields."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: cell[name] for name in names if cell.get(name) is not None})


def _layers(schema: pa.Schema) -> tuple[int, ...]:
    stored = (schema.metadata or {}).get(LAYERS_KEY.encode(), b"[]")
    return tuple(int(layer) for layer in json.loads(stored))


def _floats(values: pa.Array) -> np.ndarray:
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)


def rollout_file(run_dir: Path, step: int) -> Path:
    """The file of one step."""
    return run_dir / ROLLOUT_FOLDER / f"step_{step:06d}.parquet"


def remove_rollouts_after(run_dir: Path, step: int) -> None:
    """Remove the files of steps after `step`, which a resumed run writes again."""
    for path in (run_dir / ROLLOUT_FOLDER).glob("step_*.p*"):  # .parquet and .partial
        number = path.stem.removeprefix("step_")
        if number.isdecimal() and int(number) > step:
            path.unlink()


def write_rollouts(
    run_dir: Path,
    step: int,
    rows: Sequence[Mapping[str, Any]],
    layers: Sequence[int] | None = None,
) -> None:
    """Write sampled responses of one step to :func:`rollout_file`, synced to the disk.

    Args:
        layers: the model's layers in the columns of ``visual_attention_layers``; the file keeps
            them as JSON in its metadata, under ``LAYERS_KEY``.

    Raises:
        RunFolderError: the file cannot be written.
    """
    schema = ROLLOUT_SCHEMA
    if layers is not None:
        schema = schema.with_metadata({LAYERS_KEY: json.dumps(list(layers))})
    path = rollout_file(run_dir, step)
    partial = path.with_suffix(".partial")
    with named_failure(path):
        path.parent.mkdir(exist_ok=True)
        with partial.open("wb") as file:
            pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def small_images(images: Sequence[Any]) -> list[bytes | None]:
    """The first images of a prompt, encoded again by :func:`small_image`.

    None stands for one that is at a remote address or cannot be read.

    Args:
        images: parts of messages, or anything that :func:`load_image` takes.
    """
    return [_encoded(image) for image in images[:MAX_IMAGES]]


def small_image(image: Image.Image) -> bytes:
    """PNG or JPEG of at most ``MAX_SIDE`` pixels a side, of the pixels that the model sees.

    It holds no metadata, so that no viewer rotates it.
    """
    pixels = load_image(image)
    pixels.thumbnail((MAX_SIDE, MAX_SIDE))
    kind = "PNG" if max(pixels.size) <= _LOSSLESS_SIDE else "JPEG"
    buffer = io.BytesIO()
    pixels.save(buffer, kind, quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _encoded(entry: Any) -> bytes | None:
    image = entry.get("image") if isinstance(entry, Mapping) else entry
    if isinstance(image, StoredImage) and is_remote(image.source):
        return None  # the trainer downloads nothing for a picture in the report
    try:
        return small_image(load_image(entry))
    except IMAGE_ERRORS:
        return None


def image_uri(data: bytes) -> str:
    """``data:`` address of the image, decoded and encoded again; empty if it cannot be read.

    Only pixels get into the page; other content of the bytes is dropped.
    """
    try:
        encoded = small_image(load_image(data))
    except IMAGE_ERRORS:
        return ""
    kind = "png" if encoded.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode('ascii')}"
