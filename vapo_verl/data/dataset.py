"""veRL's data set with the `claims` of every row; choose it in the configuration with

    data.custom_cls.path=pkg://vapo_verl.data.dataset
    data.custom_cls.name=VapoDataset

veRL 0.9.1 loads the class (`get_dataset_class`) in the trainer and in every agent loop worker. It
takes `pkg://a.b.c` or a file path; a file path is loaded as an anonymous module, must exist at the
same place on every node, and a relative one depends on the working directory: prefer `pkg://`.

A column becomes a keyword argument of the agent loop: `collate_fn` makes an object array of it,
`get_tensordict` a NonTensorStack, and each row's entry is passed to `AgentLoop.run(claims=...)`.
It travels on with the rollout into the replay buffer, which takes the field names of a batch from
its first row: a row without the field would fail there. So every row has it, in training and in
validation.
"""

import contextlib
import glob
import io
import os
import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import numpy as np
from datasets import Audio, Dataset, Image, LargeList, List, Value, Video
from PIL import Image as Pixels
from verl.utils.dataset.rl_dataset import RLHFDataset

from vapo_verl.data.claims_column import read_claims
from vapo_verl.data.control_tokens import text_words
from vapo_verl.data.errors import BadCell, FileError, RowError
from vapo_verl.data.images import (
    IMAGE_ERRORS,
    StoredImage,
    image_options,
    load_image,
    stored_images,
)
from vapo_verl.data.prompt_length import (
    NotFromHeaders,
    is_supported,
    num_prompt_tokens,
    put_frames,
)
from vapo_verl.data.rows import BENCHMARK_COLUMN

_UNALIGNED = "can't be aligned"
"""In the ValueError of datasets.concatenate_datasets on columns of different types."""
_ROW, _LENGTH, _PROBLEM = "row", "length", "problem"
"""Columns of a table of lengths."""
_PROBLEMS_SHOWN = 5


class VapoDataset(RLHFDataset):
    """RLHFDataset whose rows all hold `claims`: a plain list of {"text", "label"}, [] for none.

    They also hold `prompt_uid`: the row's index in the data set, which seeds its anchors.

    Prompts over `data.max_prompt_length` are found without decoding their images; the remaining
    rows are those of RLHFDataset.

    Images in the prompt are :class:`StoredImage`: they have the pixels of
    :func:`vapo_verl.data.images.load_image`, and are transferred encoded. All forms of entry that
    it accepts are opened, and addresses are downloaded.

    Columns of images, videos or recordings that `data.*_key` do not name are left out.

    Files with and without a `claims` column may be mixed. A path names one file: `[`, `*` and `?`
    in it are characters like any other.

    With `data.control_tokens=text` the control tokens in a prompt are escaped. The tokenizers here,
    which measure it, and that of the agent loop, which encodes it, read them as plain text. The
    same holds for the think tags under `data.plain_think_tokens`.
    """

    data_files: list[str]

    def __init__(
        self,
        data_files: Any,
        tokenizer: Any,
        config: Any,
        processor: Any = None,
        max_samples: int = -1,
    ) -> None:
        self._controls = text_words(
            tokenizer,
            control_tokens=config.get("control_tokens", "refuse"),
            plain_think_tokens=config.get("plain_think_tokens", "auto"),
            processor=processor,
        )
        files = [data_files] if isinstance(data_files, str) else data_files
        files = [os.path.expanduser(file) for file in files]
        super().__init__(files, tokenizer, config, processor, max_samples)

    def __getitem__(self, item: int) -> dict:
        row = super().__getitem__(item)
        if self.prompt_key != "raw_prompt":
            del row[self.prompt_key]  # the same messages: their images would be sent twice
        try:
            claims = read_claims(row.get("claims"))
        except BadCell as problem:
            raise RowError(f"row {item} of {self.data_files}, {problem}") from problem
        for image in stored_images(row["raw_prompt"]):
            image.where = f"row {item} of {self.data_files}"
        row["claims"] = [claim.as_dict() for claim in claims]
        if (row["extra_info"] or {}).get("index") is None:  # veRL then sets 0 in every row
            row["index"] = item
        # A column of the benchmark files beside this one.
        if row.get(BENCHMARK_COLUMN, "") is None:
            row[BENCHMARK_COLUMN] = ""
        row["prompt_uid"] = str(item)  # the same in every run over the same files
        return row

    @property
    def image_patch_size(self) -> int:
        """The processor's, as in the agent loop; else `data.image_patch_size`."""
        image_processor = getattr(self.processor, "image_processor", None)
        return int(getattr(image_processor, "patch_size", None) or self._patch_size)

    @image_patch_size.setter
    def image_patch_size(self, value: int) -> None:
        self._patch_size = value

    def _build_messages(self, example: dict, key: str) -> list[dict]:
        images = example.get(self.image_key) or []
        example[self.image_key] = [self._as_part(image) for image in images]
        if self._controls is not None:
            hide = self._controls.hide
            example[key] = [{**turn, "content": hide(turn["content"])} for turn in example[key]]
        return super()._build_messages(example, key)

    def maybe_filter_out_long_prompts(self, dataframe: Dataset | None = None) -> Dataset:
        """The rows whose prompt fits, as by veRL's filter, but without decoding every image.

        veRL's filter checks only the rows whose length the headers do not give: videos, images at
        an address or of a rare format, and unreadable images, which it leaves out.
        """
        assert dataframe is not None
        media = (self.image_key, self.video_key, self.audio_key)
        dataframe = self._without_other_media(_still_encoded(dataframe, self.image_key), media)
        if not self.filter_overlong_prompts or self.processor is None:
            return super().maybe_filter_out_long_prompts(dataframe)
        if reason := self._why_decode():
            print(f"Prompt lengths: {reason}: every image is decoded to measure its row.")
            return super().maybe_filter_out_long_prompts(dataframe)
        started_s = time.monotonic()
        measured = dataframe.map(
            self._measure,
            with_indices=True,
            remove_columns=dataframe.column_names,
            num_proc=self.num_workers,
            keep_in_memory=True,
            load_from_cache_file=False,  # image files may have changed
            new_fingerprint=uuid4().hex,  # a hash of the processor takes longer than many rows
            desc=f"Measuring prompts, up to {self.max_prompt_length} tokens",
        ).to_list()
        fitting = {m[_ROW] for m in measured if 0 <= m[_LENGTH] <= self.max_prompt_length}
        unknown = {m[_ROW]: m[_PROBLEM] for m in measured if m[_LENGTH] < 0}
        kept = self._kept_by_verl(dataframe, list(unknown))
        refused = sorted(unknown.keys() - kept)
        for row in refused[:_PROBLEMS_SHOWN]:
            print(f"Row {row} of {self.original_data_files} is left out: {unknown[row]}")
        rows = sorted(fitting | kept)
        longer = len(dataframe) - len(rows) - len(refused)
        print(
            f"data.max_prompt_length={self.max_prompt_length}: {len(rows)} of {len(dataframe)} rows"
            f" are used, {longer} are longer, {len(refused)} are refused by the processor"
            f" ({time.monotonic() - started_s:.1f} s, images of {len(unknown)} rows decoded)"
        )
        return dataframe.select(rows)

    def _without_other_media(self, dataframe: Dataset, media: Sequence[str]) -> Dataset:
        """The table without images, videos and recordings in columns that no prompt reads.

        Each response would carry them, decoded: 5.76 MB for one of 1600 x 1200 pixels.
        """
        features = dataframe.features.items()
        unused = [name for name, kind in features if name not in media and _is_media(kind)]
        if not unused:
            return dataframe
        print(
            f"Columns {unused} of {self.original_data_files} are left out: a prompt has its images "
            f"from data.image_key={self.image_key}"
        )
        return dataframe.remove_columns(unused)

    def _why_decode(self) -> str:
        """Why headers cannot give any length; empty if they can."""
        if not is_supported(self.processor):
            return f"{type(self.processor).__name__} is not a processor of Qwen-VL"
        return "data.mm_processor_kwargs is set" if self.mm_processor_kwargs else ""

    def _measure(self, row: dict, index: int) -> dict[str, int | str]:
        """Tokens of the row's prompt, or -1 and the reason if only the processor can tell."""
        try:
            return {_ROW: index, _LENGTH: self.prompt_length(dict(row)), _PROBLEM: ""}
        except NotFromHeaders as reason:
            problem = str(reason)
        except BadCell as error:
            problem = str(error)
        except IMAGE_ERRORS as error:
            problem = f"column {self.image_key!r}: {error}"
        except Exception as error:  # veRL's filter drops the row on any error
            problem = f"{type(error).__name__}: {error}"
        return {_ROW: index, _LENGTH: -1, _PROBLEM: problem}

    def prompt_length(self, row: dict) -> int:
        """Tokens of a row's prompt, images included, from the headers of its images.

        Args:
            row: of a data file; its prompt is changed in place.

        Raises:
            NotFromHeaders: only the processor can tell.
            OSError, SyntaxError, ValueError, AssertionError: an image cannot be read or resized, or
                images and their places in the prompt do not match.
        """
        for key in (self.video_key, self.audio_key):
            if row.get(key):
                raise NotFromHeaders(f"the row has {key}")
        messages = self._build_messages(row, key=self.prompt_key)
        options = dict(self.apply_chat_template_kwargs)
        if self.tool_schemas is not None:
            options["tools"] = self.tool_schemas
        text = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, **options
        )
        put_frames(messages)
        images, *_ = self._process_multi_modal_info(messages, self.image_patch_size, self.config)
        return num_prompt_tokens(self.processor, text, images)

    def _kept_by_verl(self, dataframe: Dataset, rows: list[int]) -> set[int]:
        """The `rows` that veRL's own filter keeps."""
        if not rows:
            return set()
        column = "__row__"
        asked = dataframe.select(rows).add_column(column, rows)
        with contextlib.redirect_stdout(
            io.StringIO()
        ):  # it would report these rows as the data set
            return set(super().maybe_filter_out_long_prompts(asked)[column])

    def _read_files_and_tokenize(self) -> None:
        paths = self.data_files
        # datasets.load_dataset reads a path as a pattern: run[1] would be run1
        self.data_files = [glob.escape(path) for path in paths]
        try:
            super()._read_files_and_tokenize()
        except ValueError as error:
            if _UNALIGNED not in str(error):
                raise
            raise FileError(
                f"data files {paths} cannot be read together, a column has another type"
                f" in each: {error}; give it the same type (for images: import with --embed-images)"
            ) from error
        finally:
            self.data_files = paths

    def _as_part(self, entry: object) -> dict[str, Any]:
        """The image as veRL puts it into a message, with the limits of the configuration.

        Options beside the image in the row's struct are kept: qwen_vl_utils reads them.
        """
        limits = {name: self.config.get(name) for name in ("min_pixels", "max_pixels")}
        options = image_options(entry, limits)
        is_decoded = isinstance(entry, Pixels.Image | np.ndarray)
        image = load_image(entry) if is_decoded else StoredImage(entry)
        return {**options, "image": image}


def _still_encoded(dataframe: Dataset, column: str) -> Dataset:
    """The table with its images as stored, even if the column has the type that decodes them."""
    kind = dataframe.features.get(column)
    if isinstance(kind, List) and isinstance(kind.feature, Image):
        return dataframe.cast_column(column, List(Image(decode=False)))
    return dataframe


def _is_media(kind: object) -> bool:
    """Whether cells of a column's type are images, videos or recordings, or lists of them."""
    if isinstance(kind, List | LargeList):
        return _is_media(kind.feature)
    if isinstance(kind, dict):  # as they are stored, without the type that decodes them
        return kind.keys() == {"bytes", "path"} and kind["bytes"] == Value("binary")
    return isinstance(kind, Audio | Image | Video)
