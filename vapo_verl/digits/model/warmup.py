"""Stage 2: train the full model to read cells, then to answer, and throughout to judge claims."""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from vapo_verl.digits.model.samples import (
    IGNORED,
    Sample,
    SampleMaker,
    answer_ids,
    by_length,
    collate,
)
from vapo_verl.digits.scene import parse_grid

_BATCHES_A_GRID = 4
"""Batches drawn together, to be sorted by length."""


Draw = Callable[[random.Random, int, int], Sample]
"""Draws a sample of a grid of the given rows and columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A run of steps on one kind of sample."""

    kind: Literal["reading", "question"]
    """The exercise that reads every cell, or questions of the data set."""
    steps: int
    num_probes: int
    """Claims per sample; even."""
    kinds: tuple[str, ...] | None = None
    """Kinds of claims; all by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupConfig:
    """Training settings of the full model."""

    parts: tuple[Part, ...] = (
        Part(kind="reading", steps=600, num_probes=8, kinds=("identity", "color")),
        Part(kind="question", steps=2400, num_probes=6),
    )
    """In order: claims about one cell first, comparisons and searches later."""
    questions: str = "standard"
    """A key of `vapo_verl.digits.questions.QUESTION_SETS`."""
    hasty: float = 0.0
    """Fraction of questions that are solved without re-reading cells."""
    grids: tuple[str, ...] = ("2x2", "2x3")
    batch_size: int = 16
    learning_rate: float = 1.5e-3
    rise: float = 0.04
    """Fraction of all steps over which the learning rate rises; then it falls as a cosine."""
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0

    @property
    def steps(self) -> int:
        """Steps of all parts."""
        return sum(part.steps for part in self.parts)

    @property
    def steps_before_questions(self) -> int:
        """Steps of the parts that come before the first questions."""
        before = itertools.takewhile(lambda part: part.kind != "question", self.parts)
        return sum(part.steps for part in before)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoss:
    """Mean cross entropy of one step, in nats."""

    response: float
    """Over the response tokens."""
    prediction: float
    """Over the answers to anchor questions; 0.69 is a coin flip."""


def warm_up(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    maker: SampleMaker,
    config: WarmupConfig,
) -> Iterator[StepLoss]:
    """Train the model in place, responses and predictions weighted equally; yield each loss."""
    # Trained from the start, the tower loses the digits before the text layers use them.
    model.model.visual.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps + 1, pct_start=config.rise
    )
    answers = torch.tensor(answer_ids(processor.tokenizer))
    model.train()
    for samples in draw_batches(maker, config):
        batch = collate(samples, processor)
        labels = batch.pop("labels")
        response, prediction = losses(model(**batch).logits, labels, answers)
        optimizer.zero_grad()
        (response + prediction).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        schedule.step()
        yield StepLoss(response=response.item(), prediction=prediction.item())


def losses(
    logits: Float[Tensor, "batch length vocab"],
    labels: Int[Tensor, "batch length"],
    answers: Int[Tensor, " answers"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the mean cross entropies of response tokens and of predictions.

    Args:
        logits: entry t predicts label t + 1.
        labels: `IGNORED` for tokens without a loss.
        answers: the ids of yes and no; responses never hold them.
    """
    targets = labels[:, 1:].flatten()
    is_answer = torch.isin(targets, answers)
    each = cross_entropy(
        logits[:, :-1].flatten(0, 1), targets, ignore_index=IGNORED, reduction="none"
    )
    is_response = (targets != IGNORED) & ~is_answer
    return _mean(each, is_response), _mean(each, is_answer)


def _mean(values: Float[Tensor, " tokens"], chosen: Bool[Tensor, " tokens"]) -> Float[Tensor, ""]:
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def draw_batches(maker: SampleMaker, config: WarmupConfig) -> Iterator[list[Sample]]:
    """Yield one batch a step, each of one grid shape, seeded block by block."""
    for number, part in enumerate(config.parts):
        asking = replace(
            maker,
            questions=config.questions,
            hasty=config.hasty,
            num_probes=part.num_probes,
            kinds=part.kinds,
        )
        draw = asking.reading if part.kind == "reading" else asking.question
        for first in range(0, part.steps, _BATCHES_A_GRID * len(config.grids)):
            rng = random.Random(f"{config.seed}/{number}/{first}")
            yield from _block(draw, rng, config)[: part.steps - first]


def _block(draw: Draw, rng: random.Random, config: WarmupConfig) -> list[list[Sample]]:
    batches = []
    for grid in config.grids:
        rows, cols = parse_grid(grid)
        samples = [draw(rng, rows, cols) for _ in range(_BATCHES_A_GRID * config.batch_size)]
        batches += by_length(samples, config.batch_size)
    rng.shuffle(batches)
    return batches
