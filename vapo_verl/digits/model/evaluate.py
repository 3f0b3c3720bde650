"""Evaluate the model on rows of the digits world: format, answers and claims; the card."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from vapo_verl.data.images import load_image
from vapo_verl.digits.model.samples import (
    Sample,
    answer_ids,
    collate,
    encode,
    make_probe,
    prompt_ids,
)
from vapo_verl.digits.scene import parse_grid
from vapo_verl.reward import BOX, THINK_END, THINK_START

_FORMAT = re.compile(rf"{THINK_START}.+{THINK_END}{re.escape(BOX)}\{{(\w+)\}}", re.DOTALL)
_MAX_NEW_TOKENS = 160
_ROWS_A_PASS = 16
GROUP_SIZE = 5
"""Samples of one prompt, as GRPO compares them."""
_SHARES = ("format_rate", "accuracy", "claims_at_start", "claims_at_end", "yes_rate")
_TOKENS = ("mean_tokens", "p10_tokens", "p90_tokens")
_CARD = """\
# A small Qwen2.5-VL that reads grids of handwritten digits

{parameters:,} parameters, stored in bfloat16. It answers questions about grids of coloured digits
(`vapo_verl.digits`) in the form `<think>...</think>\\boxed{{...}}`, and says ` Yes` or ` No`
after `\\n<anchor>{{claim}} Is this claim correct? Answer (Yes/No):`. It is a starting point for
reinforcement learning, left on purpose with much to learn, and is of no other use.

Made by `{command}` on {date}, on {machine}, in {minutes:.0f} minutes, seed {seed}.
Training saw the train scans only (UCI handwritten digits as shipped with scikit-learn).

## Figures on unseen test scans
{num_rows} rows of each grid, weights loaded in float32, 10 claims a row. `claims_at_start` is
the accuracy on claims directly after the prompt, `claims_at_end` after the reasoning. "Other image"
swaps images between rows, a control for text alone.

{table}

"Chance" gives each kind of question its most common answer. "Mixed groups" are the rows of which
{group_size} samples at temperature 1 are neither all correct nor all incorrect.

| grid | chance | mixed groups |
|---|---|---|
{spread}

## Losses of a rehearsal
{tower}Two steps of every part of the warm-up, response / prediction: {warm_up}.
`first_steps.json` holds them in full; rerun them to check that the recipe is unchanged.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Rates in 0..1 over the rows of an evaluation, and the lengths of the responses."""

    format_rate: float
    """Responses of the form `<think>...</think>\\boxed{...}`."""
    accuracy: float
    """Responses of that form with the correct answer."""
    claims_at_start: float
    """Accuracy on claims directly after the prompt, before any reasoning."""
    claims_at_end: float
    """Accuracy on claims after all reasoning."""
    yes_rate: float
    """Rate of yes, over both positions; half of the claims are true."""
    mean_tokens: float
    """Of a response, its end included."""
    p10_tokens: float
    p90_tokens: float


def evaluate(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    rows: Sequence[dict],
    *,
    temperature: float = 0.0,
    num_claims: int = 10,
) -> Figures:
    """Answer the rows and judge the first `num_claims` claims of each, before and after reasoning.

    Args:
        rows: as `vapo_verl.digits.build.build_split` makes them.
        temperature: of the responses; 0 is greedy. Predictions on claims are always greedy.
    """
    was_training = model.training
    model.eval()
    samples = respond(model, processor, [make_prompt(processor, row) for row in rows], temperature)
    answers = [read_answer(processor, sample) for sample in samples]
    lengths = [len(sample.response_ids) for sample in samples]
    claims = [row["claims"][:num_claims] for row in rows]
    judged = judge(model, processor, samples, claims)
    labels = np.array([[claim["label"] for claim in of_row] for of_row in claims])
    model.train(was_training)
    return Figures(
        format_rate=float(np.mean([answer is not None for answer in answers])),
        accuracy=float(np.mean([a == t for a, t in zip(answers, _truths(rows), strict=True)])),
        claims_at_start=float((judged[:, 0] == labels).mean()),
        claims_at_end=float((judged[:, 1] == labels).mean()),
        yes_rate=float(judged.mean()),
        mean_tokens=float(np.mean(lengths)),
        p10_tokens=float(np.percentile(lengths, 10)),
        p90_tokens=float(np.percentile(lengths, 90)),
    )


def mixed_groups(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    rows: Sequence[dict],
) -> float:
    """Return the fraction of rows whose `GROUP_SIZE` samples are mixed.

    Only mixed groups give an advantage that compares the samples of one prompt.
    """
    prompts = [make_prompt(processor, row) for row in rows]
    samplings = [respond(model, processor, prompts, temperature=1.0) for _ in range(GROUP_SIZE)]
    answers = np.array([[read_answer(processor, s) for s in samples] for samples in samplings])
    correct = answers == np.array(_truths(rows))
    return float((correct.any(axis=0) & ~correct.all(axis=0)).mean())


def chance(rows: Sequence[dict]) -> float:
    """Return the accuracy of giving each kind of question its most common answer."""
    answers: dict[str, Counter[str]] = {}
    for row, truth in zip(rows, _truths(rows), strict=True):
        answers.setdefault(row["extra_info"]["kind"], Counter())[truth] += 1
    return sum(max(counts.values()) for counts in answers.values()) / len(rows)


def swap_images(rows: Sequence[dict]) -> list[dict]:
    """Give every row another row's image of the same grid: a control for text alone."""
    swapped = list(rows)
    for grid in {row["extra_info"]["grid"] for row in rows}:
        indices = [i for i, row in enumerate(rows) if row["extra_info"]["grid"] == grid]
        for index, other in zip(indices, indices[1:] + indices[:1], strict=True):
            swapped[index] = {**rows[index], "images": rows[other]["images"]}
    return swapped


@torch.no_grad()
def respond(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    prompts: Sequence[Sample],
    temperature: float,
) -> list[Sample]:
    """Return the prompts with the model's responses, and the end-of-turn id if it was reached."""
    tokenizer, length = processor.tokenizer, max(len(sample.prompt_ids) for sample in prompts)
    padding = [length - len(sample.prompt_ids) for sample in prompts]
    ids = torch.tensor(
        [
            [tokenizer.pad_token_id] * pad + [*s.prompt_ids]
            for pad, s in zip(padding, prompts, strict=True)
        ]
    )
    mask = torch.arange(length)[None] >= torch.tensor(padding)[:, None]
    images = processor.image_processor([sample.pixels for sample in prompts], return_tensors="pt")
    sampling = (
        {"do_sample": False}
        if temperature == 0
        else {"do_sample": True, "temperature": temperature, "top_k": 0}
    )
    output = model.generate(
        input_ids=ids,
        attention_mask=mask.long(),
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        max_new_tokens=_MAX_NEW_TOKENS,
        **images,
        **sampling,
    )
    responses = [_until(row, tokenizer.eos_token_id) for row in output[:, length:].tolist()]
    return [replace(sample, response_ids=r) for sample, r in zip(prompts, responses, strict=True)]


def judge(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    samples: Sequence[Sample],
    claims: Sequence[Sequence[dict]],
) -> Bool[np.ndarray, "rows 2 claims"]:
    """Return the model's predictions on every row's claims, before and after its reasoning."""
    probed = [
        _probed(processor, sample, of_row) for sample, of_row in zip(samples, claims, strict=True)
    ]
    return np.stack([said.reshape(2, -1) for said in predictions(model, processor, probed)])


@torch.no_grad()
def predictions(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    samples: Sequence[Sample],
) -> list[Bool[np.ndarray, " probes"]]:
    """The model's greedy prediction at every probe of every sample."""
    yes, no = answer_ids(processor.tokenizer)
    said = []
    for first in range(0, len(samples), _ROWS_A_PASS):
        some = samples[first : first + _ROWS_A_PASS]
        batch = collate(some, processor)
        batch.pop("labels")
        logits = model(**batch).logits
        for row, sample in enumerate(some):
            at = answer_positions(sample)
            said.append((logits[row, at, yes] > logits[row, at, no]).numpy())
    return said


def _probed(processor: Qwen2_5_VLProcessor, sample: Sample, claims: Sequence[dict]) -> Sample:
    (end_of_reasoning,) = encode(processor.tokenizer, THINK_END)
    ids = sample.response_ids
    end = ids.index(end_of_reasoning) if end_of_reasoning in ids else len(ids) - 1
    probes = [
        make_probe(processor.tokenizer, cut, claim["text"], claim["label"])
        for cut in (0, end)
        for claim in claims
    ]
    return replace(sample, probes=tuple(probes))


def answer_positions(sample: Sample) -> list[int]:
    """Positions in a batch's row that predict the answers to the sample's probes."""
    start = len(sample.prompt_ids) + len(sample.response_ids)
    ends = start + np.cumsum([len(probe.ids) for probe in sample.probes])
    return (ends - 2).tolist()


def make_prompt(processor: Qwen2_5_VLProcessor, row: dict) -> Sample:
    """A row's prompt and image, without a response."""
    rows, cols = parse_grid(row["extra_info"]["grid"])
    question = row["extra_info"]["question"]
    return Sample(
        pixels=np.array(load_image(row["images"][0])),
        rows=rows,
        cols=cols,
        prompt_ids=prompt_ids(processor.tokenizer, question, rows * cols),
        response_ids=(),
        probes=(),
    )


def _truths(rows: Sequence[dict]) -> list[str]:
    return [row["reward_model"]["ground_truth"] for row in rows]


def read_answer(processor: Qwen2_5_VLProcessor, sample: Sample) -> str | None:
    """The boxed answer of a sample's response; None where it is not in the format."""
    text = processor.tokenizer.decode(sample.response_ids, skip_special_tokens=True)
    match = _FORMAT.fullmatch(text)
    return match[1] if match else None


def _until(ids: list[int], end: int) -> tuple[int, ...]:
    return tuple(ids[: ids.index(end) + 1] if end in ids else ids)


def model_card(figures: dict[str, Any], first: dict[str, list], **facts: Any) -> str:
    """Return the card as Markdown.

    Args:
        figures: `recipe.measure`'s result.
        first: `recipe.first_losses`' result.
        facts: parameters, command, date, machine, minutes, seed and num_rows.
    """
    tower = ", ".join(f"{loss:.3f}" for loss in first["tower"])
    warm_up = (f"{loss['response']:.3f} / {loss['prediction']:.3f}" for loss in first["warm_up"])
    return _CARD.format(
        table=_table(figures),
        spread="\n".join(
            f"| {grid} | {of_grid['chance']:.3f} | {of_grid['mixed_groups']:.3f} |"
            for grid, of_grid in figures.items()
        ),
        group_size=GROUP_SIZE,
        tower=f"First steps of the tower: {tower}. " if tower else "",
        warm_up=", ".join(warm_up),
        **facts,
    )


def _table(figures: dict[str, Any]) -> str:
    columns = (*_SHARES, *_TOKENS)
    lines = [f"| grid | responses | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    for grid, of_grid in figures.items():
        for condition, found in of_grid["responses"].items():
            cells = [f"{found[column]:.3f}" for column in _SHARES]
            cells += [f"{found[column]:.0f}" for column in _TOKENS]
            lines.append(f"| {grid} | {condition} | {' | '.join(cells)} |")
    return "\n".join(lines)
