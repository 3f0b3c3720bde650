"""Reads a few rows of the training file as a run would. Imports verl: for the child process."""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf, open_dict

from vapo_verl.doctor.findings import Finding, error, warning
from vapo_verl.doctor.model_size import model_folder
from vapo_verl.doctor.samples import CHECK, PromptSample, judge_samples, measure

NUM_ROWS, NUM_PLACES = 32, 4
BAD_ROW = (AssertionError, ValueError, TypeError, KeyError, IndexError, OSError)
"""What a row that cannot be read raises out of veRL, the processor and PIL."""


def check_rows(config: DictConfig) -> Iterator[Finding]:
    files = config.data.train_files
    file = Path(files if isinstance(files, str) else files[0])
    folder = model_folder(config)
    if not file.is_file():
        yield warning(CHECK, f"data.train_files={file} is not here", "see the check `data`")
        return
    if folder is None:
        found = f"the processor of {config.actor_rollout_ref.model.path} is not on this machine"
        fix = f"hf download {config.actor_rollout_ref.model.path}"
        yield warning(CHECK, f"{found}: no prompt was expanded", fix)
        return
    yield from check_image_token(folder)
    samples: list[PromptSample] = []
    for row, sample in read_samples(config, file, folder):
        if isinstance(sample, PromptSample):
            samples.append(sample)
        else:
            yield error(
                CHECK,
                f"row {row} of {file} cannot be read: {type(sample).__name__}: {sample}",
                "mend the row: `python -m vapo_verl.data check FILE` looks at all of them",
            )
    yield from judge_samples(
        samples,
        max_prompt_length=config.data.max_prompt_length,
        filtered=config.data.filter_overlong_prompts,
    )


def check_image_token(folder: Path) -> Iterator[Finding]:
    """The model and its processor must mean the same token by an image."""
    from transformers import AutoProcessor

    model = json.loads((folder / "config.json").read_text()).get("image_token_id")
    processor = getattr(AutoProcessor.from_pretrained(folder), "image_token_id", None)
    if model != processor:
        yield error(
            CHECK,
            f"{folder}: image_token_id is {model} in config.json, {processor} in the processor",
            "take model and processor files from the same release",
        )


def read_samples(
    config: DictConfig, file: Path, folder: Path
) -> Iterator[tuple[int, PromptSample | BaseException]]:
    """Each sampled row's number with what was measured, or with why it could not be."""
    from verl.utils import hf_processor, hf_tokenizer
    from verl.utils.dataset.rl_dataset import get_dataset_class

    processor, tokenizer = hf_processor(str(folder)), hf_tokenizer(str(folder))
    numbers, table = sample_table(file)
    data: Any = OmegaConf.create(OmegaConf.to_container(config.data, resolve=True))
    with open_dict(data):
        data.filter_overlong_prompts = False
    with tempfile.TemporaryDirectory() as scratch:
        part = Path(scratch) / "sample.parquet"
        pq.write_table(table, part)
        dataset = get_dataset_class(data)([str(part)], tokenizer, data, processor)
        for place, number in enumerate(numbers):
            try:
                yield number, _sample(dataset, place, number, num_images(table, dataset, place))
            except BAD_ROW as problem:
                yield number, problem


def _sample(dataset: Any, place: int, number: int, images_in_row: int) -> PromptSample:
    messages = dataset[place]["raw_prompt"]
    vision = dataset.process_vision_info(messages, dataset.image_patch_size, dataset.config)
    images = asyncio.run(vision)[0]
    return measure(
        number,
        messages,
        images,
        processor=dataset.processor,
        num_images=images_in_row,
        template_options=dataset.apply_chat_template_kwargs,
        processor_options=dataset.mm_processor_kwargs,
    )


def num_images(table: pa.Table, dataset: Any, place: int) -> int:
    """Images of a row; the data set takes them out of it."""
    if dataset.image_key not in table.column_names:
        return 0
    cell = table[dataset.image_key][place]
    return len(cell) if cell.is_valid else 0


def sample_table(file: Path) -> tuple[list[int], pa.Table]:
    """Rows from a few places of a file, and their numbers in it. The rest is not read."""
    with pq.ParquetFile(file) as parquet:
        groups = parquet.num_row_groups
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(groups)]
        chosen = sorted({i * groups // NUM_PLACES for i in range(min(NUM_PLACES, groups))})
        each = -(-NUM_ROWS // max(len(chosen), 1))
        numbers: list[int] = []
        tables = []
        for group in chosen:
            first = sum(sizes[:group])
            for batch in itertools.islice(parquet.iter_batches(each, [group]), 1):
                tables.append(pa.Table.from_batches([batch]))
                numbers.extend(range(first, first + len(batch)))
    if not tables:
        raise ValueError(f"data.train_files={file} holds no rows; import the data again")
    return numbers, pa.concat_tables(tables)
