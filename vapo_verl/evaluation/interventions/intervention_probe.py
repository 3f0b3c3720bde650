"""Generates responses to rows, plain and with insertions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from vapo_verl.anchors.placement import logical_boundaries
from vapo_verl.evaluation.interventions import INTERVENTIONS, PLAIN, InterventionOptions
from vapo_verl.evaluation.probing.attention_summary import ratios
from vapo_verl.evaluation.probing.engine import Completion, Context, Engine, ShownImage
from vapo_verl.evaluation.probing.probe_options import ProbeOptions
from vapo_verl.evaluation.probing.respond import Reasoning, Response, grade, respond, seeds
from vapo_verl.evaluation.probing.rows import Row
from vapo_verl.reward import BOX, THINK_END

LONGEST_STEP = 1.5
"""Most tokens generated to find the next boundary, in units of the distance of insertions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Insertion:
    """Tokens and images that an intervention inserts into a response."""

    ids: tuple[int, ...]
    images: tuple[ShownImage, ...]
    in_text: bool
    """Whether it becomes part of the response's text."""


@dataclass(slots=True, kw_only=True)
class SteppedResponse:
    """A response that is written in steps, with insertions between them."""

    plain: Response
    insertion: Insertion
    plan: Plan
    context: Context
    """Everything so far, with insertions."""
    ids: list[int] = field(default_factory=list)
    """Tokens the model wrote."""
    attention: list[float] = field(default_factory=list)
    """Visual attention of each of them."""
    text_ids: list[int] = field(default_factory=list)
    """Tokens of the response's text."""
    positions: list[int] = field(default_factory=list)
    """Tokens the model had written before each insertion."""
    takes_more: bool = True
    """Whether something may still be inserted."""
    finish: str | None = None
    """None while it is being written."""

    def write(self, completion: Completion, length: int | None = None) -> None:
        """Append the first `length` tokens of what the model wrote."""
        ids = completion.ids[:length]
        self.context = self.context.then(ids)
        self.ids += ids
        self.attention += completion.attention[:length].tolist()
        self.text_ids += ids

    def insert(self) -> None:
        """Insert here."""
        self.context = self.context.then(self.insertion.ids, *self.insertion.images)
        self.positions.append(len(self.ids))
        if self.insertion.in_text:
            self.text_ids += self.insertion.ids

    def end(self, finish: str | None) -> None:
        """Stop inserting. With `finish` None the model still has to write the rest."""
        self.takes_more, self.finish = False, finish


def apply_interventions(
    engine: Engine, rows: Sequence[Row], options: ProbeOptions, interventions: InterventionOptions
) -> list[dict[str, Any]]:
    """A record for each row; the engine has to export attention."""
    responses = respond(engine, rows, options)
    stepped = {
        name: _respond_with(
            engine,
            responses,
            [_insertion(engine, name, response, interventions) for response in responses],
            options,
            interventions,
        )
        for name in INTERVENTIONS
    }
    return [
        {
            **response.row.identity(),
            "responses": {
                PLAIN: _plain_record(response),
                **{name: _record(engine, stepped[name][number]) for name in INTERVENTIONS},
            },
        }
        for number, response in enumerate(responses)
    ]


def _insertion(
    engine: Engine, name: str, response: Response, interventions: InterventionOptions
) -> Insertion:
    if name == "focus":
        ids = engine.encode_plain(interventions.focus_text)
        return Insertion(ids=ids, images=(), in_text=True)
    scale = interventions.replay_scale
    images = tuple(ShownImage(_scaled(image.pixels, scale)) for image in response.prompt.images)
    ids = engine.user_turn(len(images), interventions.replay_text)
    return Insertion(ids=ids, images=images, in_text=False)


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    width, height = (max(round(side * scale), 1) for side in image.size)
    return image.resize((width, height))


def _respond_with(
    engine: Engine,
    responses: Sequence[Response],
    insertions: Sequence[Insertion],
    options: ProbeOptions,
    interventions: InterventionOptions,
) -> list[SteppedResponse]:
    """Write all responses together: a step of each, then an insertion, repeated; last the rest."""
    all_stepped = [
        _begin(response, insertion, interventions)
        for response, insertion in zip(responses, insertions, strict=True)
    ]
    for _ in range(interventions.num_insertions - 1):
        some = [stepped for stepped in all_stepped if stepped.takes_more]
        steps = [min(stepped.plan.step, _left(stepped, options)) for stepped in some]
        for stepped, completion in zip(some, _write(engine, some, steps, options), strict=True):
            _take_step(engine, stepped, completion)
            if stepped.finish is None and _left(stepped, options) == 0:
                stepped.end("length")
    some = [stepped for stepped in all_stepped if stepped.finish is None]
    steps = [_left(stepped, options) for stepped in some]
    for stepped, completion in zip(some, _write(engine, some, steps, options), strict=True):
        stepped.write(completion)
        stepped.end(completion.finish)
    return all_stepped


def _begin(
    response: Response, insertion: Insertion, interventions: InterventionOptions
) -> SteppedResponse:
    """The plain response up to the first insertion; all of it if nothing can be inserted."""
    plan = plan_insertions(response.reasoning, interventions.num_insertions)
    stepped = SteppedResponse(
        plain=response, insertion=insertion, plan=plan, context=response.prompt
    )
    stepped.write(response.completion, plan.first)
    if plan.first is None:
        stepped.end(response.completion.finish)
    else:
        stepped.insert()
    return stepped


def _take_step(engine: Engine, stepped: SteppedResponse, completion: Completion) -> None:
    """Cut the completion at the next boundary and insert there, or let the response end."""
    position = next_insertion(engine.pieces(completion.ids), stepped.plan.distance)
    if completion.finish == "stop" or position is None:
        stepped.write(completion)
        stepped.end("stop" if completion.finish == "stop" else None)
    else:
        stepped.write(completion, position)
        stepped.insert()


def _left(stepped: SteppedResponse, options: ProbeOptions) -> int:
    """Tokens that the model may still write."""
    return options.max_tokens - len(stepped.ids)


def _write(
    engine: Engine, some: Sequence[SteppedResponse], lengths: Sequence[int], options: ProbeOptions
) -> list[Completion]:
    first = seeds([stepped.plain.row for stepped in some], options)
    return engine.complete(
        [stepped.context for stepped in some],
        lengths,
        temperature=options.temperature,
        # the same seed again would draw as for the response's first tokens
        seeds=[seed + len(stepped.ids) for seed, stepped in zip(first, some, strict=True)],
    )


def _plain_record(response: Response) -> dict[str, Any]:
    return {
        "response": response.text,
        "num_tokens": response.num_tokens,
        "insertions": [],
        "finish": response.completion.finish,
        **asdict(response.grade),
        "attention": ratios(response.completion.attention),
    }


def _record(engine: Engine, stepped: SteppedResponse) -> dict[str, Any]:
    text = engine.decode(stepped.text_ids)
    return {
        "response": text,
        "num_tokens": len(stepped.ids),
        "insertions": stepped.positions,
        "finish": stepped.finish,
        **asdict(grade(text, stepped.plain.row)),
        "attention": ratios(np.array(stepped.attention)),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Positions of the insertions."""

    first: int | None
    """Tokens before the first; None where the reasoning has no boundary inside it."""
    distance: int
    """Approximate number of tokens from one insertion to the next."""

    @property
    def step(self) -> int:
        """Tokens that are written to find the position of the next insertion."""
        return math.ceil(LONGEST_STEP * self.distance)


def plan_insertions(reasoning: Reasoning, num_insertions: int) -> Plan:
    """Evenly spaced positions in the reasoning of the plain response; only the first is fixed."""
    length = reasoning.end - reasoning.start
    distance = length / (num_insertions + 1)
    inside = [b for b in reasoning.boundaries if reasoning.start < b < reasoning.end]
    first = min(inside, key=lambda b: abs(b - reasoning.start - distance), default=None)
    return Plan(first=first, distance=max(round(distance), 1))


def next_insertion(pieces: Sequence[str], distance: int) -> int | None:
    """Tokens of a step before the next insertion; None if its reasoning ends or no clause ends.

    Args:
        pieces: text of each token written since the last insertion.
        distance: tokens wanted.
    """
    text = "".join(pieces)
    if THINK_END in text or BOX in text:
        return None
    return min(logical_boundaries(pieces), key=lambda b: abs(b - distance), default=None)
