"""Answers rows plainly and with insertions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from vapo_verl.diagnostics.probing.attention import ratios
from vapo_verl.diagnostics.probing.engine import Completion, Context, Engine
from vapo_verl.diagnostics.probing.options import ProbeOptions
from vapo_verl.diagnostics.probing.respond import Response, grade, respond, seeds
from vapo_verl.diagnostics.probing.rows import Row
from vapo_verl.diagnostics.remedies.draft import Draft, Plan, next_insertion, plan_insertions
from vapo_verl.diagnostics.remedies.options import PLAIN, REMEDIES, RemedyOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Insertion:
    """What a remedy puts into a response."""

    ids: tuple[int, ...]
    images: tuple[Image.Image, ...]
    in_text: bool
    """Whether it becomes part of the response's text."""


@dataclass(slots=True, kw_only=True)
class Work:
    """A response in the making."""

    response: Response
    """The plain one."""
    insertion: Insertion
    plan: Plan
    context: Context
    draft: Draft
    shown: list[int]
    """Tokens of the response's text."""

    def write(self, completion: Completion, length: int | None = None) -> None:
        """Take up the first `length` tokens that the model wrote."""
        ids = completion.ids[:length]
        self.context = self.context.then(ids)
        self.draft.write(ids, completion.attention[:length])
        self.shown += ids

    def insert(self) -> None:
        """Put the remedy here."""
        insertion = self.insertion
        self.context = self.context.then(insertion.ids, *insertion.images)
        self.draft.insertions.append(len(self.draft.ids))
        if insertion.in_text:
            self.shown += insertion.ids


def apply_remedies(
    engine: Engine, rows: Sequence[Row], options: ProbeOptions, remedies: RemedyOptions
) -> list[dict[str, Any]]:
    """A record for each row; the engine has to export attention."""
    responses = respond(engine, rows, options)
    treated = {
        name: _respond_with(
            engine,
            responses,
            [_insertion(engine, name, response, remedies) for response in responses],
            options,
            remedies,
        )
        for name in REMEDIES
    }
    return [
        {
            **response.row.identity(),
            "responses": {
                PLAIN: _plain_record(response),
                **{name: _record(engine, treated[name][number]) for name in REMEDIES},
            },
        }
        for number, response in enumerate(responses)
    ]


def _insertion(engine: Engine, name: str, response: Response, remedies: RemedyOptions) -> Insertion:
    if name == "focus":
        return Insertion(ids=engine.encode(remedies.focus_text), images=(), in_text=True)
    images = tuple(_scaled(image, remedies.replay_scale) for image in response.prompt.images)
    ids = engine.user_turn(len(images), remedies.replay_text)
    return Insertion(ids=ids, images=images, in_text=False)


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    width, height = (max(round(side * scale), 1) for side in image.size)
    return image.resize((width, height))


def _respond_with(
    engine: Engine,
    responses: Sequence[Response],
    insertions: Sequence[Insertion],
    options: ProbeOptions,
    remedies: RemedyOptions,
) -> list[Work]:
    """Write all responses together: a step of each, an insertion, and so on, then the rest."""
    works = [
        _begin(response, insertion, remedies)
        for response, insertion in zip(responses, insertions, strict=True)
    ]
    for _ in range(remedies.num_insertions - 1):
        running = [work for work in works if not work.draft.ending]
        steps = [min(work.plan.step, _left(work, options)) for work in running]
        for work, completion in zip(running, _write(engine, running, steps, options), strict=True):
            _take_step(engine, work, completion)
    unfinished = [work for work in works if work.draft.finish is None]
    rest = [_left(work, options) for work in unfinished]
    for work, completion in zip(unfinished, _write(engine, unfinished, rest, options), strict=True):
        work.write(completion)
        work.draft.finish = completion.finish
    return works


def _begin(response: Response, insertion: Insertion, remedies: RemedyOptions) -> Work:
    """The plain response up to the first insertion; all of it where nothing can be inserted."""
    plan = plan_insertions(response.reasoning, remedies.num_insertions)
    work = Work(
        response=response,
        insertion=insertion,
        plan=plan,
        context=response.prompt,
        draft=Draft(),
        shown=[],
    )
    work.write(response.completion, plan.first)
    if plan.first is None:
        work.draft.ending, work.draft.finish = True, response.completion.finish
    else:
        work.insert()
    return work


def _take_step(engine: Engine, work: Work, completion: Completion) -> None:
    """Cut what was written at the next boundary and insert there, or let the response end."""
    place = next_insertion(engine.pieces(completion.ids), work.plan.distance)
    if completion.finish == "stop" or place is None:
        work.write(completion)
        work.draft.ending = True
        work.draft.finish = "stop" if completion.finish == "stop" else None
    else:
        work.write(completion, place)
        work.insert()


def _left(work: Work, options: ProbeOptions) -> int:
    return max(options.max_tokens - len(work.draft.ids), 1)


def _write(
    engine: Engine, works: Sequence[Work], lengths: Sequence[int], options: ProbeOptions
) -> list[Completion]:
    return engine.complete(
        [work.context for work in works],
        lengths,
        temperature=options.temperature,
        seeds=seeds([work.response.row for work in works], options),
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


def _record(engine: Engine, work: Work) -> dict[str, Any]:
    text, draft = engine.decode(work.shown), work.draft
    return {
        "response": text,
        "num_tokens": len(draft.ids),
        "insertions": draft.insertions,
        "finish": draft.finish,
        **asdict(grade(text, work.response.row)),
        "attention": ratios(np.array(draft.attention)),
    }
