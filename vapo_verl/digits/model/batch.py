"""Samples as one batch, in which a sample's probes are branches that share its prompt and response.

A row of the batch holds prompt, response and then every probe. A probe token attends to the row's
first `prompt + cut` tokens and to its own probe, at the positions it would have if the response had
been cut there. So each probe gets the same logits as in a sequence of its own, for fewer tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import Qwen2_5_VLProcessor

from vapo_verl.digits.model.samples import IGNORED, Sample


def collate(samples: Sequence[Sample], processor: Qwen2_5_VLProcessor) -> dict[str, Tensor]:
    """Return the keyword arguments of the model's forward pass, labels included."""
    length = max(sample.length for sample in samples)
    pad_id = processor.tokenizer.pad_token_id
    rows = [_row(sample, length, pad_id) for sample in samples]
    tokens, labels, positions, masks = map(np.stack, zip(*rows, strict=True))
    images = processor.image_processor([sample.pixels for sample in samples], return_tensors="pt")
    return {
        "input_ids": torch.from_numpy(tokens),
        "labels": torch.from_numpy(labels),
        "position_ids": torch.from_numpy(positions).transpose(0, 1),
        "attention_mask": torch.from_numpy(masks)[:, None],
        **images,
    }


def by_length(samples: Sequence[Sample], batch_size: int) -> list[list[Sample]]:
    """Cut the samples into batches of similar length, to pad less."""
    ordered = sorted(samples, key=lambda sample: sample.length)
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]


def _row(sample: Sample, length: int, pad_id: int) -> tuple[np.ndarray, ...]:
    num_prompt, num_response = len(sample.prompt_ids), len(sample.response_ids)
    trunk = num_prompt + num_response
    tokens = np.full(length, pad_id)
    labels = np.full(length, IGNORED)
    positions = np.zeros((3, length), dtype=np.int64)
    branch = np.full(length, -1)
    visible = np.zeros(length, dtype=np.int64)
    tokens[:trunk] = sample.prompt_ids + sample.response_ids
    labels[num_prompt:trunk] = sample.response_ids
    positions[:, :trunk] = trunk_positions(sample)
    branch[:trunk] = 0
    visible[:trunk] = np.arange(1, trunk + 1)
    start = trunk
    for number, probe in enumerate(sample.probes, start=1):
        end, cut = start + len(probe.ids), num_prompt + probe.cut
        tokens[start:end] = probe.ids
        labels[start:end] = probe.labels
        positions[:, start:end] = positions[:, cut - 1 : cut] + np.arange(1, end - start + 1)
        branch[start:end] = number
        visible[start:end] = cut
        start = end
    return tokens, labels, positions, tree_mask(branch, visible)


def trunk_positions(sample: Sample) -> Int[np.ndarray, "axes trunk"]:
    """Return Qwen2.5-VL's rotary positions (time, row, column) of prompt and response tokens.

    Text counts up on all axes; image tokens share one time and are told apart by row and column;
    text goes on behind the largest position of the image.
    """
    first = sample.prompt_ids.index(_image_id(sample))
    num_cells = sample.rows * sample.cols
    num_after = len(sample.prompt_ids) + len(sample.response_ids) - first - num_cells
    row, column = np.divmod(np.arange(num_cells), sample.cols)
    image = first + np.stack([np.zeros_like(row), row, column])
    after = first + max(sample.rows, sample.cols) + np.arange(num_after)
    return np.concatenate([_text(np.arange(first)), image, _text(after)], axis=1)


def tree_mask(
    branch: Int[np.ndarray, " length"], visible: Int[np.ndarray, " length"]
) -> Bool[np.ndarray, "length length"]:
    """Return which key (second axis) each query (first axis) attends to.

    Args:
        branch: 0 for prompt and response, k for the k-th probe, -1 for padding.
        visible: how many tokens from the start of the row a token may see besides its own branch.
    """
    order = np.arange(len(branch))
    trunk = (branch[None] == 0) & (order[None] < visible[:, None])
    own = (branch[:, None] == branch[None]) & (order[None] <= order[:, None])
    return trunk | own


def _text(positions: np.ndarray) -> np.ndarray:
    return np.broadcast_to(positions, (3, len(positions)))


def _image_id(sample: Sample) -> int:
    # The image tokens are the only id that a prompt repeats `rows * cols` times in a row.
    ids, num_cells = sample.prompt_ids, sample.rows * sample.cols
    return next(a for a, b in zip(ids, ids[num_cells - 1 :], strict=False) if a == b)
