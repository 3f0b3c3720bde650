"""Read some rows of the training file as a run does. Imports verl: for the child process."""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf, open_dict

from vapo_verl.data.cells import RowRules, check_row
from vapo_verl.data.control_tokens import load_processor
from vapo_verl.data.errors import BadCell
from vapo_verl.data.images import check_image, image_source, is_remote
from vapo_verl.data.rows import columns_for
from vapo_verl.doctor.findings import Finding, error, ok, warning
from vapo_verl.doctor.model_size import model_folder
from vapo_verl.preflight import row_rules

NUM_ROWS, NUM_PLACES = 32, 4
BAD_ROW = (AssertionError, ValueError, TypeError, KeyError, IndexError, OSError)
"""Errors of veRL, the processor and PIL on an unreadable row."""
CHECK = "rows"
MAX_OVERLONG_FRACTION = 0.05
"""With more rows left out, the training data differ from those intended."""
SHOWN = 3


def check_rows(config: DictConfig) -> Iterator[Finding]:
    files = config.data.train_files
    file = Path(files if isinstance(files, str) else files[0]).expanduser()
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
        elif isinstance(sample, BadCell):  # in the words of the checks before a run
            found = f"{file} row {row}, column '{sample.column}': {sample.found}"
            yield error(CHECK, found, sample.fix)
        else:
            yield error(
                CHECK,
                f"row {row} of {file} cannot be read: {type(sample).__name__}: {sample}",
                "`python -m vapo_verl.data check FILE --skip-bad-rows OUT` writes the rows that "
                "can be used; if it keeps this one, report the check",
            )
    yield from judge_samples(
        samples,
        max_prompt_length=config.data.max_prompt_length,
        filtered=config.data.filter_overlong_prompts,
    )


def check_image_token(folder: Path) -> Iterator[Finding]:
    """Check that model and processor use the same image token."""
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
    """Each sampled row's number with its measurement or its error."""
    from verl.utils import hf_tokenizer
    from verl.utils.dataset.rl_dataset import get_dataset_class

    own_template = config.actor_rollout_ref.model.get("custom_chat_template")
    processor, tokenizer = load_processor(folder, own_template), hf_tokenizer(str(folder))
    numbers, table = sample_table(file)
    data: Any = OmegaConf.create(OmegaConf.to_container(config.data, resolve=True))
    with open_dict(data):
        data.filter_overlong_prompts = False
    with tempfile.TemporaryDirectory() as scratch:
        part = Path(scratch) / "sample.parquet"
        pq.write_table(table, part)
        dataset = get_dataset_class(data)([str(part)], tokenizer, data, processor)
        rules = row_rules(config)
        for place, number in enumerate(numbers):
            try:
                _check(table, place, rules)
                yield number, _sample(dataset, place, number, num_images(table, dataset, place))
            except BAD_ROW as problem:
                yield number, problem


def _check(table: pa.Table, place: int, rules: RowRules) -> None:
    """Raises BadCell, as the checks before a run and `data check` do."""
    [row] = table.slice(place, 1).to_pylist()
    row = {name: row.get(name) for name in columns_for(rules)}
    check_row(row, rules)
    for entry in row["images"] or ():
        if not is_remote(source := image_source(entry)):
            check_image(source, decode=True)


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
    """Number of images in a row; the data set removes them from it."""
    if dataset.image_key not in table.column_names:
        return 0
    cell = table[dataset.image_key][place]
    return len(cell) if cell.is_valid else 0


def sample_table(file: Path) -> tuple[list[int], pa.Table]:
    """Rows from several positions of a file, and their numbers; other rows are not read."""
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


# Prompts of some rows: image tokens against image features, lengths against the limit.
#
# An image of a grid (t, h, w) of patches gives t * h * w / merge_size^2 features, and the prompt
# must hold as many image tokens: a model stops with "image features and image tokens do not match".


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSample:
    """One row as in the rollout."""

    row: int
    num_tokens: int
    image_tokens: int
    """Image tokens in the expanded prompt."""
    image_features: int
    """Features from the images' grids."""
    images_in_row: int
    images_in_prompt: int


def measure(
    row: int, messages: Sequence[dict[str, Any]], images: Sequence[Any], **parts: Any
) -> PromptSample:
    """Expand one prompt. ``parts``: processor, num_images, template_options, processor_options."""
    processor = parts["processor"]
    text = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False, **parts["template_options"]
    )
    inputs = processor(
        text=[text], images=images or None, return_tensors="pt", **parts["processor_options"]
    )
    ids, grid = inputs["input_ids"][0], inputs.get("image_grid_thw")
    merged = processor.image_processor.merge_size**2
    return PromptSample(
        row=row,
        num_tokens=len(ids),
        image_tokens=int((ids == processor.image_token_id).sum()),
        image_features=0 if grid is None else int(grid.prod(-1).sum()) // merged,
        images_in_row=parts["num_images"],
        images_in_prompt=sum(
            item.get("type") == "image"
            for message in messages
            if not isinstance(message["content"], str)
            for item in message["content"]
        ),
    )


def judge_samples(
    samples: Sequence[PromptSample], *, max_prompt_length: int, filtered: bool
) -> Iterator[Finding]:
    """Findings of a sample of a file; ``filtered``: overlong rows are left out, not an error."""
    bad = [s for s in samples if s.image_tokens != s.image_features]
    for sample in bad[:SHOWN]:
        yield error(
            CHECK,
            f"row {sample.row}: {sample.image_tokens} image tokens in the prompt, but "
            f"{sample.image_features} image features",
            "the processor's patch_size and merge_size must be the model's, and its chat template "
            "must write one image placeholder an image",
        )
    unused = [s for s in samples if s.images_in_row != s.images_in_prompt]
    for sample in unused[:SHOWN]:
        yield error(
            CHECK,
            f"row {sample.row}: {sample.images_in_row} images, but {sample.images_in_prompt} "
            "<image> in its prompt",
            "write <image> once for each image: see docs/data.md",
        )
    yield from _lengths(samples, max_prompt_length, filtered)
    if samples and not bad and not unused:
        tokens = [s.image_tokens for s in samples]
        found = f"{len(samples)} rows: image tokens match, {min(tokens)} to {max(tokens)} a prompt"
        yield ok(CHECK, found)


def _lengths(samples: Sequence[PromptSample], limit: int, filtered: bool) -> Iterator[Finding]:
    if not samples:
        return
    longest = max(s.num_tokens for s in samples)
    over = [s for s in samples if s.num_tokens > limit]
    fraction = len(over) / len(samples)
    found = (
        f"{len(over)} of {len(samples)} prompts ({fraction:.0%}) are over "
        f"data.max_prompt_length={limit}, the longest has {longest} tokens"
    )
    fix = "raise data.max_prompt_length and rollout.max_model_len, or lower data.max_pixels"
    if not over:
        yield ok(CHECK, found)
    elif not filtered:
        yield error(CHECK, found, f"{fix}, or data.filter_overlong_prompts=true")
    elif fraction > MAX_OVERLONG_FRACTION:
        yield warning(CHECK, f"{found}: they are left out", fix)
    else:
        yield ok(CHECK, f"{found}: they are left out")
