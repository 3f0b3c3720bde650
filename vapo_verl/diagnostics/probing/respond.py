"""Responses to rows, and their grades."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vapo_verl.anchors.seeding import SampleKey
from vapo_verl.diagnostics.probing.cuts import Reasoning, find_reasoning
from vapo_verl.diagnostics.probing.engine import Completion, Context, Engine
from vapo_verl.diagnostics.probing.options import ProbeOptions
from vapo_verl.diagnostics.probing.rows import Row
from vapo_verl.reward.accuracy import accuracy, answer_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """What a text answers."""

    answer: str | None
    right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A row with the model's response to it."""

    row: Row
    prompt: Context
    completion: Completion
    text: str
    grade: Grade
    reasoning: Reasoning

    def before(self, position: int) -> Context:
        """The prompt and the response's own tokens before a cut."""
        return self.prompt.then(self.completion.ids[:position])

    @property
    def num_tokens(self) -> int:
        return len(self.completion.ids)


def respond(engine: Engine, rows: Sequence[Row], options: ProbeOptions) -> list[Response]:
    """One response to each row, as the options say it is sampled."""
    prompts = [engine.prompt(row) for row in rows]
    completions = engine.complete(
        prompts, options.max_tokens, temperature=options.temperature, seeds=seeds(rows, options)
    )
    return [
        _response(engine, row, prompt, completion)
        for row, prompt, completion in zip(rows, prompts, completions, strict=True)
    ]


def seeds(rows: Sequence[Row], options: ProbeOptions) -> list[int]:
    """Sampling seeds that depend on the row and not on its batch."""
    return [row_key(row, options).sampling_seed() for row in rows]


def row_key(row: Row, options: ProbeOptions) -> SampleKey:
    """Names the row's draws."""
    return SampleKey(seed=options.seed, step=0, prompt_uid=str(row.number), sample=0)


def grade(text: str, row: Row) -> Grade:
    """The answer of a response's whole text, by the project's reward."""
    return Grade(answer=answer_of(text), right=accuracy(text, row.ground_truth, row.style) == 1.0)


def _response(engine: Engine, row: Row, prompt: Context, completion: Completion) -> Response:
    text = engine.decode(completion.ids)
    return Response(
        row=row,
        prompt=prompt,
        completion=completion,
        text=text,
        grade=grade(text, row),
        reasoning=find_reasoning(engine.pieces(completion.ids)),
    )
