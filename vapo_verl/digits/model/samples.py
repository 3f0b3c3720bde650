"""Supervised samples: a prompt, a response, and anchor questions about cuts of that response."""

import random
from dataclasses import dataclass
from functools import cache
from itertools import chain

import numpy as np
from transformers import PreTrainedTokenizerBase

from vapo_verl.anchors.placement import logical_boundaries
from vapo_verl.config import AnchorConfig
from vapo_verl.digits.questions import sample_question
from vapo_verl.digits.render import render_pixels
from vapo_verl.digits.scans import ScanPool
from vapo_verl.digits.scene import Scene, sample_scene
from vapo_verl.digits.selection import sample_claims
from vapo_verl.digits.solutions import read
from vapo_verl.reward.tags import THINK_END, THINK_START

IGNORED = -100
"""Label of a token at which nothing is learnt."""
READ_PROMPT = "Read all digits."
"""Asks for every cell in any order; an exercise that is no question of the data set."""
ANCHOR_TEXT = AnchorConfig().question
"""Put after a cut of the response, as in training."""
VERDICTS = {True: AnchorConfig().yes_words[0], False: AnchorConfig().no_words[0]}
"""The answer token by the claim's truth, with the space that natural text has after a colon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """An anchor question behind the first `cut` response tokens."""

    cut: int
    ids: tuple[int, ...]
    """Token ids of the question, and last the id of its verdict."""
    labels: tuple[int, ...]
    """What is learnt at each of them, `IGNORED` for nothing: the verdict at the end, and also
    right behind the claim, where judging is learnt before passing it on. Of a true claim its
    words, too: who can say what the top left digit is has only to compare to judge a claim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image with all that is learnt from it."""

    pixels: np.ndarray
    """uint8 [28 * rows, 28 * cols, 3]"""
    rows: int
    cols: int
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    """Ends with the end-of-turn id; every one is learnt."""
    probes: tuple[Probe, ...]

    @property
    def length(self) -> int:
        """Tokens of prompt, response and probes together."""
        probes = sum(len(probe.ids) for probe in self.probes)
        return len(self.prompt_ids) + len(self.response_ids) + probes


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleMaker:
    """Draws samples from a pool of scans."""

    tokenizer: PreTrainedTokenizerBase
    pool: ScanPool
    questions: str = "standard"
    """Which of `vapo_verl.digits.questions.QUESTION_SETS` is asked."""
    hasty: float = 0.0
    """Share of questions that are solved without looking again."""
    num_probes: int = 0
    """Claims asked of every sample; even."""
    kinds: tuple[str, ...] | None = None
    """Kinds of claims asked; all by default."""

    def reading(self, rng: random.Random, rows: int, cols: int) -> Sample:
        """Draw a sample whose response reads every cell, in random order."""
        scene = sample_scene(rng, self.pool, rows, cols)
        places = rng.sample(list(scene.places), rows * cols)
        response = f"{THINK_START}{' '.join(read(scene, place) for place in places)}{THINK_END}"
        return self._sample(rng, scene, READ_PROMPT, response)

    def question(self, rng: random.Random, rows: int, cols: int) -> Sample:
        """Draw a sample whose response solves a question of the data set."""
        # Without a draw where none is hasty: other recipes keep their samples.
        hasty = self.hasty > 0 and rng.random() < self.hasty
        scene = sample_scene(rng, self.pool, rows, cols)
        question = sample_question(rng, scene, self.questions)
        response = question.hasty_response if hasty else question.response
        return self._sample(rng, scene, question.text, response)

    def _sample(self, rng: random.Random, scene: Scene, question: str, response: str) -> Sample:
        response_ids = encode(self.tokenizer, response)
        return Sample(
            pixels=render_pixels(scene, rng),
            rows=scene.rows,
            cols=scene.cols,
            prompt_ids=prompt_ids(self.tokenizer, question, scene.rows * scene.cols),
            response_ids=(*response_ids, self.tokenizer.eos_token_id),
            probes=self._probes(rng, scene, response_ids),
        )

    def _probes(
        self, rng: random.Random, scene: Scene, response_ids: tuple[int, ...]
    ) -> tuple[Probe, ...]:
        if not self.num_probes:
            return ()
        cuts = cut_positions([piece(self.tokenizer, token) for token in response_ids])
        claims = sample_claims(rng, scene, self.num_probes, self.kinds)
        drawn = [0 if number % 2 else rng.choice(cuts) for number in range(self.num_probes)]
        return tuple(
            make_probe(self.tokenizer, cut, item.claim.text, item.label)
            for cut, item in zip(drawn, claims, strict=True)
        )


@cache
def piece(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return a token's text."""
    return tokenizer.decode([token])


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Return a text's ids, nothing added."""
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def verdict_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return the ids of the verdicts (true, false); each is a single token."""
    (yes,), (no,) = (encode(tokenizer, VERDICTS[label]) for label in (True, False))
    return yes, no


@cache
def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, question: str, num_cells: int
) -> tuple[int, ...]:
    """Return the ids up to the answer; the user turn's image has `num_cells` merged tokens."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return encode(tokenizer, text.replace("<|image_pad|>", "<|image_pad|>" * num_cells))


@cache
def make_probe(tokenizer: PreTrainedTokenizerBase, cut: int, claim: str, label: bool) -> Probe:
    """Return the anchor question about a claim with the right verdict."""
    before, _, after = ANCHOR_TEXT.partition("{claim}")
    words, verdict = encode(tokenizer, claim), encode(tokenizer, VERDICTS[label])
    before_ids, after_ids = encode(tokenizer, before), encode(tokenizer, after)
    ids = (*before_ids, *words, *after_ids, *verdict)
    assert ids[:-1] == encode(tokenizer, before + claim + after)
    learnt_words = words if label else (IGNORED,) * len(words)
    ignored = (IGNORED,) * (len(after_ids) - 1)
    labels = ((IGNORED,) * len(before_ids), learnt_words, verdict, ignored, verdict)
    return Probe(cut=cut, ids=ids, labels=tuple(chain.from_iterable(labels)))


def cut_positions(pieces: list[str]) -> list[int]:
    """Return where a response may be cut: 0, and its logical boundaries.

    Args:
        pieces: the decoded text of every response token.
    """
    return [0, *logical_boundaries(pieces)]
