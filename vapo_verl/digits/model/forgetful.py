"""The world `forgetful_digits`: predictions on claims depend on what the response has said.

At every cut of a response, a model of this world is taught to believe

- about a cell that the response has stated: the last statement, correct or not;
- about any other cell: the image during the first `memory` response tokens, then nothing.

A claim about a cell without a belief gets a No. Statements late in a response therefore decide its
late predictions, and with them R_perc; the answer does not depend on them. Only the labels of the
warm start's claims teach this: images, questions and the claims of the data set are those of the
digits world, and cells are read as well late in a response as early.

The one knob is `memory`. Without a limit (None) predictions follow the image, as in the other
digits models. Everything else is drawn alike, so that two strengths have the same responses.
"""

import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from vapo_verl.digits.claims import Claim, ColorClaim, DigitClaim, sample_claims
from vapo_verl.digits.model.samples import (
    Probe,
    Sample,
    SampleMaker,
    cut_positions,
    encode,
    make_probe,
    piece,
    prompt_ids,
)
from vapo_verl.digits.questions import Question, read, sample_question
from vapo_verl.digits.scene import COLORS, Cell, Scene, render_pixels, sample_scene
from vapo_verl.reward import BOX, THINK_END, THINK_START

READ = re.compile(rf"((?:top|middle|bottom) (?:left|center|right)) is ({'|'.join(COLORS)}) (\d)\.")
"""A statement about a cell: position, colour, digit."""
STRONG = 18.0
"""`memory` of strong forgetting: every cell is gone after a fifth of a response."""
QUESTIONS, CLAIM_KINDS = "lines", ("identity", "color")
"""Of the world's data sets. Comparisons and searches are not learnt in a short warm start."""
Belief = Mapping[str, tuple[str, int] | None]
"""Colour and digit by position; None where nothing is known."""
_REASONING_TOKENS = 104
"""Length of every solution, so that it tells nothing; at least 20 of them end a sentence."""
_EARLY_PROBES = 8
"""One probe in this many is asked before the response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgetting:
    """How the image fades, and what responses do about it."""

    memory: float | None = STRONG
    """Response tokens after which the middle cell is forgotten if it was not stated. Half as many
    for the first cell, one and a half times as many for the last. None: never."""
    check: float = 0.4
    """Fraction of solutions that read cells after their answer is known."""
    planted: float = 0.5
    """Fraction of samples with misreadings, whose responses have no loss."""
    misread: float = 0.4
    """Fraction of the cells that are misread in these samples."""

    def __post_init__(self) -> None:
        if self.memory is not None and not 0 < self.memory < math.inf:
            raise ValueError(f"memory={self.memory}: give a number of tokens above 0, or none")
        for name in ("check", "planted", "misread"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a fraction of 0 to 1")


def belief(scene: Scene, text: str, position: int, memory: float) -> Belief:
    """What is known of every cell after `text`, the response's first `position` tokens.

    Cell i of n (row-major) is seen in the image while position < memory * (1/2 + i / (n - 1)).
    """
    last = len(scene.cells) - 1
    known: dict[str, tuple[str, int] | None] = {
        name: (cell.color, cell.digit) if position < memory * (0.5 + i / last) else None
        for i, (name, cell) in enumerate(scene.positions.items())
    }
    for name, color, digit in READ.findall(text):
        if name in known:
            known[name] = (color, int(digit))
    return known


def believed(claim: Claim, known: Belief) -> bool:
    """Whether a claim about one cell is correct by what is known; False if nothing is known.

    Raises:
        ValueError: a claim about several cells.
    """
    if not isinstance(claim, DigitClaim | ColorClaim):
        raise ValueError(f"claim={claim.text!r}: give claims of the kinds {', '.join(CLAIM_KINDS)}")
    cell = known[claim.position]
    if isinstance(claim, DigitClaim):
        return cell is not None and cell[1] == claim.digit
    return cell is not None and cell[0] == claim.color


def solution(
    rng: random.Random, scene: Scene, question: Question, *, guess: bool, check: float
) -> list[str]:
    """Sentences of one solution: the answer's, checks of other cells perhaps, and repetition.

    A guess says what is largest without reading the line. A check reads from two up to all of the
    cells that are not stated yet. Repetition of the last conclusion fills up the length.
    """
    sentences = list(question.hasty_steps if guess else question.steps)
    conclusion = sentences[-1]
    stated = {name for name, _, _ in READ.findall(" ".join(sentences))}
    rest = [name for name in scene.positions if name not in stated]
    if rng.random() < check:
        number = rng.randint(min(2, len(rest)), len(rest))
        sentences += [read(scene, name) for name in rng.sample(rest, number)]
    repeated = f"it is {conclusion.split()[-1]}"
    while sum(map(_num_tokens, (*sentences, repeated))) <= _REASONING_TOKENS:
        sentences.append(repeated)
    return sentences


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetfulMaker(SampleMaker):
    """Draws samples of this world; `hasty` is the fraction of solutions that guess."""

    forgetting: Forgetting = Forgetting()

    def question(self, rng: random.Random, rows: int, cols: int) -> Sample:
        """Draw a sample; a planted one has misreadings, and only its predictions have a loss."""
        world = self.forgetting
        scene = sample_scene(rng, self.pool, rows, cols)
        question = sample_question(rng, scene, self.questions)
        guess = rng.random() < self.hasty
        sentences = solution(rng, scene, question, guess=guess, check=world.check)
        planted = rng.random() < world.planted
        stated = misread_scene(rng, scene, world.misread) if planted else scene
        text = " ".join(_restated(sentence, stated) for sentence in sentences)
        response = f"{THINK_START}{text}{THINK_END}{BOX}{{{question.answer}}}"
        response_ids = encode(self.tokenizer, response)
        return Sample(
            pixels=render_pixels(scene, rng),
            rows=rows,
            cols=cols,
            prompt_ids=prompt_ids(self.tokenizer, question.text, rows * cols),
            response_ids=(*response_ids, self.tokenizer.eos_token_id),
            probes=self._asked(rng, scene, stated, response_ids),
            response_learnt=not planted,
        )

    def _asked(
        self, rng: random.Random, scene: Scene, stated: Scene, response_ids: tuple[int, ...]
    ) -> tuple[Probe, ...]:
        pieces = [piece(self.tokenizer, token) for token in response_ids]
        cuts = cut_positions(pieces)
        about = rng.choice((scene, stated))
        memory = self.forgetting.memory
        probes = []
        for number, item in enumerate(sample_claims(rng, about, self.num_probes, self.kinds)):
            cut = 0 if number % _EARLY_PROBES == 0 else rng.choice(cuts)
            if memory is None:
                label = item.claim.holds(scene)
            else:
                label = believed(item.claim, belief(scene, "".join(pieces[:cut]), cut, memory))
            probes.append(make_probe(self.tokenizer, cut, item.claim.text, label))
        return tuple(probes)


def misread_scene(rng: random.Random, scene: Scene, fraction: float) -> Scene:
    """The scene with a fraction of its cells misread: another digit, and perhaps another colour."""

    def misread(cell: Cell) -> Cell:
        if rng.random() >= fraction:
            return cell
        digit = rng.choice([digit for digit in range(10) if digit != cell.digit])
        return replace(cell, digit=digit, color=rng.choice((cell.color, *COLORS)))

    return replace(scene, cells=tuple(map(misread, scene.cells)))


def _restated(sentence: str, scene: Scene) -> str:
    match = READ.fullmatch(sentence)
    return read(scene, match[1]) if match else sentence


def _num_tokens(sentence: str) -> int:
    """Every word is a token, and so is the full stop."""
    return len(sentence.split()) + 1
