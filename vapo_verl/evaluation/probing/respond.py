"""Responses of a checkpoint to rows, cuts of their reasoning, and claims probed along them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vapo_verl.anchors.placement import logical_boundaries, reasoning_length
from vapo_verl.anchors.plan import SampleKey
from vapo_verl.anchors.question import AnchorQuestion, bind_question
from vapo_verl.data.claims_column import Claim
from vapo_verl.evaluation.probing.engine import Completion, Context, Engine, Prediction
from vapo_verl.evaluation.probing.probe_options import ProbeOptions, QuestionOptions
from vapo_verl.evaluation.probing.rows import Row
from vapo_verl.reward import THINK_START
from vapo_verl.reward.accuracy import accuracy, answer_of
from vapo_verl.run_folder import RunError


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """The answer in a text, and whether it is correct."""

    answer: str | None
    right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """The reasoning of a response as token positions: each is the number of tokens before it."""

    start: int
    """After the opening tag; 0 without one."""
    end: int
    """Before the closing tag, see :func:`vapo_verl.anchors.placement.reasoning_length`."""
    boundaries: tuple[int, ...]
    """Ascending, from `start` to `end`, both included."""


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

    def record(self) -> dict[str, Any]:
        """The row, the response and its grade, as every `rows.jsonl` holds them."""
        return {
            **self.row.identity(),
            "response": self.text,
            "num_tokens": self.num_tokens,
            "reasoning": [self.reasoning.start, self.reasoning.end],
            "finish": self.completion.finish,
            **asdict(self.grade),
        }


def respond(engine: Engine, rows: Sequence[Row], options: ProbeOptions) -> list[Response]:
    """One response to each row, sampled by the options."""
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
    """Key of the row's random draws."""
    return SampleKey(seed=options.seed, step=0, prompt_uid=str(row.number), sample=0)


def grade(text: str, row: Row) -> Grade:
    """The answer in the text of a response, compared by the project's reward."""
    return Grade(
        answer=answer_of(text),
        right=accuracy(text, row.truths or row.ground_truth, row.style) == 1.0,
    )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimProbe:
    """A claim probed after the first `position` tokens of a response."""

    position: int
    claim: Claim


def bound_question(engine: Engine, asked: QuestionOptions) -> AnchorQuestion:
    """The question of the options in the tokens of this model.

    Raises:
        RunError: no answer word is one token after the question.
    """
    words = asked.yes_words, asked.no_words
    try:
        return bind_question(engine.tokenizer, asked.question, *words, controls=engine.controls)
    except ValueError as error:
        raise RunError(f"--question, --yes-words, --no-words: {error}") from error


def cycle_claims(
    positions: Sequence[int], claims: Sequence[Claim], per_cut: int, rng: np.random.Generator
) -> list[ClaimProbe]:
    """Probe `per_cut` claims at every position, cycling through all of them in a drawn order.

    With `per_cut` >= the number of claims, every claim is probed everywhere. Empty without claims.
    """
    if not claims:
        return []
    order = [claims[i] for i in rng.permutation(len(claims))]
    count = min(per_cut, len(claims))
    return [
        ClaimProbe(position=position, claim=order[(cut * count + number) % len(order)])
        for cut, position in enumerate(positions)
        for number in range(count)
    ]


def predict_claims(
    engine: Engine, probes: Sequence[tuple[Context, ClaimProbe]], question: AnchorQuestion
) -> list[Prediction]:
    """The model's prediction on each claim, after its context."""
    contexts = [context.then(question.token_ids(probe.claim.text)) for context, probe in probes]
    return engine.predict(contexts, question)


def anchor_record(probe: ClaimProbe, prediction: Prediction) -> dict[str, Any]:
    """An anchor in the format of a run's rollout files."""
    answer = prediction.p_yes >= 0.5
    return {
        "position": probe.position,
        "claim": probe.claim.text,
        "label": probe.claim.label,
        "answer": answer,
        "correct": answer == probe.claim.label,
        "p_yes": float(f"{prediction.p_yes:.6g}"),
    }


def find_reasoning(pieces: Sequence[str]) -> Reasoning:
    """Find the reasoning and its logical boundaries.

    Args:
        pieces: text of each response token, without the end-of-turn token.
    """
    end = reasoning_length(pieces)
    start = min(_opening_length(pieces), end)
    inside = (b for b in logical_boundaries(pieces) if start < b < end)
    return Reasoning(start=start, end=end, boundaries=tuple(sorted({start, *inside, end})))


def cut_positions(reasoning: Reasoning, targets: Sequence[float]) -> list[int]:
    """The boundary nearest to each fraction of the reasoning, in a tie the earlier; may repeat.

    Args:
        targets: fractions in 0..1; 0 is the start of the reasoning and 1 its end.
    """
    length = reasoning.end - reasoning.start
    return [
        min(reasoning.boundaries, key=lambda b: abs(b - reasoning.start - target * length))
        for target in targets
    ]


def even_targets(num_cuts: int) -> tuple[float, ...]:
    """`num_cuts` >= 2 fractions from 0 to 1, evenly spaced: 21 of them are 0, 0.05, .. 1."""
    return tuple(round(i / (num_cuts - 1), 6) for i in range(num_cuts))


def _opening_length(pieces: Sequence[str]) -> int:
    """Tokens up to the end of an opening tag that begins the response."""
    text = ""
    for number, piece in enumerate(pieces, start=1):
        text += piece
        opening = text.lstrip()
        if opening.startswith(THINK_START):
            return number
        if not THINK_START.startswith(opening):
            return 0
    return 0
