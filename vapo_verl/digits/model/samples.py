"""Supervised samples: a prompt, a response, and anchor questions at cuts of that response.

In a batch, a sample's probes are branches that share its prompt and response: a row holds prompt,
response and then every probe. A probe token attends to the row's first `prompt + cut` tokens and to
its own probe, at the positions it would have if the response had been cut there. So each probe gets
the same logits as in a sequence of its own, for fewer tokens.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLProcessor

from vapo_verl.anchors.placement import logical_boundaries
from vapo_verl.config import AnchorConfig
from vapo_verl.digits.claims import sample_claims
from vapo_verl.digits.questions import read, sample_question
from vapo_verl.digits.scene import ScanPool, Scene, render_pixels, sample_scene
from vapo_verl.reward import THINK_END, THINK_START

IGNORED = -100
"""Label of a token without a loss."""
READ_PROMPT = "Read all digits."
"""An exercise outside the data set: read every cell in any order."""
ANCHOR_TEXT = AnchorConfig().question
"""Appended after a cut of the response, as in training."""
ANSWERS = {True: AnchorConfig().yes_words[0], False: AnchorConfig().no_words[0]}
"""The answer token by the claim's truth, with the space that natural text has after a colon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """An anchor question after the first `cut` response tokens."""

    cut: int
    ids: tuple[int, ...]
    """Token ids of the question, and last the id of its answer."""
    labels: tuple[int, ...]
    """Target at each id, or `IGNORED`: the answer at the end, and also directly after the claim, so
    that the claim is judged before the answer position. The words of a true claim are targets,
    too: a model that predicts the top left digit then only has to compare it with the claim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image with all its training targets."""

    pixels: np.ndarray
    """uint8 [28 * rows, 28 * cols, 3]"""
    rows: int
    cols: int
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    """Ends with the end-of-turn id."""
    probes: tuple[Probe, ...]
    response_learnt: bool = True
    """Whether the response's tokens have a loss, or only the answers to the probes."""

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
    """A key of `vapo_verl.digits.questions.QUESTION_SETS`."""
    hasty: float = 0.0
    """Fraction of questions that are solved without re-reading cells."""
    num_probes: int = 0
    """Claims per sample; even."""
    kinds: tuple[str, ...] | None = None
    """Kinds of claims; all by default."""

    def reading(self, rng: random.Random, rows: int, cols: int) -> Sample:
        """Draw a sample whose response reads every cell, in random order."""
        scene = sample_scene(rng, self.pool, rows, cols)
        positions = rng.sample(list(scene.positions), rows * cols)
        response = (
            f"{THINK_START}{' '.join(read(scene, position) for position in positions)}{THINK_END}"
        )
        return self._sample(rng, scene, READ_PROMPT, response)

    def question(self, rng: random.Random, rows: int, cols: int) -> Sample:
        """Draw a sample whose response solves a question of the data set."""
        # No draw at 0, so that other recipes keep their samples.
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


def answer_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return the ids of the answers (true, false); each is a single token."""
    (yes,), (no,) = (encode(tokenizer, ANSWERS[label]) for label in (True, False))
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
    """Return the anchor question about a claim with the correct answer."""
    before, _, after = ANCHOR_TEXT.partition("{claim}")
    words, answer = encode(tokenizer, claim), encode(tokenizer, ANSWERS[label])
    before_ids, after_ids = encode(tokenizer, before), encode(tokenizer, after)
    ids = (*before_ids, *words, *after_ids, *answer)
    assert ids[:-1] == encode(tokenizer, before + claim + after)
    learnt_words = words if label else (IGNORED,) * len(words)
    ignored = (IGNORED,) * (len(after_ids) - 1)
    labels = ((IGNORED,) * len(before_ids), learnt_words, answer, ignored, answer)
    return Probe(cut=cut, ids=ids, labels=tuple(chain.from_iterable(labels)))


def cut_positions(pieces: list[str]) -> list[int]:
    """Return the possible cuts of a response: 0, and its logical boundaries.

    Args:
        pieces: the decoded text of every response token.
    """
    return [0, *logical_boundaries(pieces)]


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
    if sample.response_learnt:
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

    Text counts up on all axes; image tokens share one time and differ in row and column;
    text continues after the largest position of the image.
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
