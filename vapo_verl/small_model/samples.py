"""Supervised samples: a prompt, a response, and anchor questions about cuts of that response."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from vapo_verl.data.digits.questions import read, sample_question
from vapo_verl.data.digits.render import render_pixels
from vapo_verl.data.digits.scans import ScanPool
from vapo_verl.data.digits.scene import Scene, sample_scene
from vapo_verl.data.digits.selection import sample_claims
from vapo_verl.small_model.texts import ANCHOR_TEXT, READ_PROMPT, VERDICTS, cut_positions


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """An anchor question behind the first `cut` response tokens."""

    cut: int
    ids: tuple[int, ...]
    """Token ids of the question, and last the id of its verdict, the only one that is learnt."""


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

    def reading(self, rng: random.Random, rows: int, cols: int, num_probes: int) -> Sample:
        """Draw a sample whose response reads every cell, in random order."""
        scene = sample_scene(rng, self.pool, rows, cols)
        places = rng.sample(list(scene.places), rows * cols)
        response = f"<think>{' '.join(read(scene, place) for place in places)}</think>"
        return self._sample(rng, scene, READ_PROMPT, response, num_probes)

    def question(self, rng: random.Random, rows: int, cols: int, num_probes: int) -> Sample:
        """Draw a sample whose response solves a question of the data set."""
        scene = sample_scene(rng, self.pool, rows, cols)
        question = sample_question(rng, scene)
        return self._sample(rng, scene, question.text, question.response, num_probes)

    def _sample(
        self, rng: random.Random, scene: Scene, question: str, response: str, num_probes: int
    ) -> Sample:
        response_ids = encode(self.tokenizer, response)
        return Sample(
            pixels=render_pixels(scene, rng),
            rows=scene.rows,
            cols=scene.cols,
            prompt_ids=prompt_ids(self.tokenizer, question, scene.rows * scene.cols),
            response_ids=(*response_ids, self.tokenizer.eos_token_id),
            probes=self._probes(rng, scene, response_ids, num_probes),
        )

    def _probes(
        self, rng: random.Random, scene: Scene, response_ids: tuple[int, ...], num_probes: int
    ) -> tuple[Probe, ...]:
        if not num_probes:
            return ()
        cuts = cut_positions([piece(self.tokenizer, token) for token in response_ids])
        claims = sample_claims(rng, scene, num_probes)
        drawn = [0 if number % 2 else rng.choice(cuts) for number in range(num_probes)]
        return tuple(
            Probe(cut=cut, ids=probe_ids(self.tokenizer, item.claim.text, item.label))
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
def probe_ids(tokenizer: PreTrainedTokenizerBase, claim: str, label: bool) -> tuple[int, ...]:
    """Return the ids of the anchor question about a claim, and last that of the right verdict."""
    question = encode(tokenizer, ANCHOR_TEXT.format(claim=claim))
    return (*question, *encode(tokenizer, VERDICTS[label]))
