"""The recipes: tokenizer, tower, and a warm-up that stops early, to leave room for RL."""

import logging
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

from vapo_verl.digits.build import DigitsConfig, build_split
from vapo_verl.digits.claims import sample_claims
from vapo_verl.digits.model import model_dir
from vapo_verl.digits.model.architecture import (
    TowerConfig,
    build_model,
    build_processor,
    load_model,
    save_model,
    train_tower,
)
from vapo_verl.digits.model.evaluate import Figures, chance, evaluate, mixed_groups, swap_images
from vapo_verl.digits.model.samples import ANCHOR_TEXT, ANSWERS, READ_PROMPT, SampleMaker
from vapo_verl.digits.model.warmup import Part, StepLoss, WarmupConfig, warm_up
from vapo_verl.digits.questions import sample_question
from vapo_verl.digits.scene import parse_grid, sample_scene, scan_pool

_logger = logging.getLogger(__name__)
_LOG_EVERY = 20
_STEPS_A_PART = 2
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen's special tokens; they take the first ids."""
# Tags are ordinary words, so that decoding with skip_special_tokens=True keeps them.
_WORDS = r"</?think>|<anchor>|\\boxed| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s"
_VOCAB_LIMIT = 4096
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part['type'] == 'video' -%}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
"""Qwen's chat form, without a default system message."""
GRIDS = ("2x2", "2x3", "3x2", "3x3")
_ROLES = "system\nuser\nassistant\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeConfig:
    """All settings that determine the model."""

    seed: int = 0
    start: str | None = None
    """The packaged model to start from; None: a new tokenizer and random weights."""
    tower: TowerConfig | None = field(default_factory=TowerConfig)
    """None leaves the tower unchanged."""
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    check_every: int = 200
    """Steps between validations, once questions are trained."""
    check_rows: int = 96
    stop_accuracy: float | None = 0.4
    """Greedy accuracy on validation rows at which the warm-up ends: RL needs room to improve. None
    trains to the end of the schedule, where the learning rate is 0."""
    test_rows: int = 128
    """Test rows of every grid for the final figures."""


PRESETS = {
    "digits": RecipeConfig(),
    "long_digits": RecipeConfig(
        start="digits",
        tower=None,
        warmup=WarmupConfig(
            parts=(Part(kind="question", steps=1000, num_probes=4),),
            questions="long",
            grids=("3x3",),
            learning_rate=1e-3,
        ),
        stop_accuracy=None,
    ),
    "hasty_digits": RecipeConfig(
        start="long_digits",
        tower=None,
        warmup=WarmupConfig(
            parts=(Part(kind="question", steps=700, num_probes=4),),
            questions="parts",
            hasty=0.5,
            grids=("3x3",),
            learning_rate=1e-3,
        ),
        stop_accuracy=None,
    ),
}
"""The recipe of each packaged model, by its folder's name."""


def starting_model(
    config: RecipeConfig,
) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """Return the model that the recipe starts from and its processor."""
    if config.start is not None:
        return load_model(model_dir(config.start))
    tokenizer = train_tokenizer(corpus())
    torch.manual_seed(config.seed)
    return build_model(tokenizer), build_processor(tokenizer)


def make_model(out: Path, config: RecipeConfig) -> None:
    """Train the model and save it in `out`."""
    model, processor = starting_model(config)
    if config.tower is not None:
        tower = replace(config.tower, seed=config.seed)
        losses = train_tower(model, processor, scan_pool("train"), tower)
        for step, loss in enumerate(losses, start=1):
            if step % _LOG_EVERY == 0:
                _logger.info("tower step %d loss %.3f", step, loss)
    _warm_up_until(model, processor, config, out)
    save_model(model, processor, out)


def measure(folder: Path, config: RecipeConfig) -> dict[str, Any]:
    """Return the saved model's figures on unseen test scans, by grid."""
    model, processor = load_model(folder)
    torch.manual_seed(config.seed)
    figures: dict[str, Any] = {}
    for grid in config.warmup.grids:
        data = DigitsConfig(
            test=config.test_rows,
            grids=(grid,),
            seed=config.seed,
            questions=config.warmup.questions,
        )
        rows = build_split(data, "test")
        conditions = {
            "greedy": evaluate(model, processor, rows),
            "temperature 1": evaluate(model, processor, rows, temperature=1.0),
            "greedy, other image": evaluate(model, processor, swap_images(rows)),
        }
        figures[grid] = {
            "responses": {name: asdict(found) for name, found in conditions.items()},
            "chance": chance(rows),
            "mixed_groups": mixed_groups(model, processor, rows),
        }
    return figures


def _warm_up_until(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    config: RecipeConfig,
    out: Path,
) -> None:
    maker = SampleMaker(tokenizer=processor.tokenizer, pool=scan_pool("train"))
    warmup = replace(config.warmup, seed=config.seed)
    data = DigitsConfig(
        val=config.check_rows, grids=warmup.grids, seed=config.seed, questions=warmup.questions
    )
    rows = build_split(data, "val")
    for step, loss in enumerate(warm_up(model, processor, maker, warmup), start=1):
        _log_step(step, loss)
        if step > warmup.steps_before_questions and step % config.check_every == 0:
            figures = evaluate(model, processor, rows)
            _log_figures(step, figures)
            save_model(model, processor, out)  # so that an interrupted run leaves a model
            if config.stop_accuracy is not None and figures.accuracy >= config.stop_accuracy:
                return


def _log_step(step: int, loss: StepLoss) -> None:
    if step % _LOG_EVERY == 0:
        _logger.info("step %d response %.3f prediction %.3f", step, loss.response, loss.prediction)


def _log_figures(step: int, figures: Figures) -> None:
    _logger.info("step %d on validation rows: %s", step, figures)


def first_losses(config: RecipeConfig, num_tower_steps: int = 4) -> dict[str, list]:
    """Return the losses of the first tower steps, then of two steps of every warm-up part.

    The tower's are those of the full recipe; the others start from this barely trained tower.
    """
    model, processor = starting_model(config)
    pool = scan_pool("train")
    tower_losses: list[float] = []
    if config.tower is not None:
        tower = train_tower(model, processor, pool, replace(config.tower, seed=config.seed))
        tower_losses += islice(tower, num_tower_steps)
    maker = SampleMaker(tokenizer=processor.tokenizer, pool=pool)
    parts = tuple(replace(part, steps=_STEPS_A_PART) for part in config.warmup.parts)
    warmup = replace(config.warmup, seed=config.seed, parts=parts)
    return {
        "tower": tower_losses,
        "warm_up": [asdict(loss) for loss in warm_up(model, processor, maker, warmup)],
    }


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which every word of the texts is a single token.

    It has Qwen's special tokens and splits text Qwen's way, with two differences that keep
    sequences short and exact: a space joins whatever follows it, and there is no Unicode
    normalisation, so that any text survives a round trip.

    Deterministic: merges are ordered by count and then by token id.
    """
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB_LIMIT,
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def corpus(num_scenes: int = 600) -> Iterator[str]:
    """Yield questions, responses and anchor texts of seeded scenes, and the words around them."""
    yield _ROLES
    yield READ_PROMPT
    yield from ANSWERS.values()
    yield from (word.strip() for word in ANSWERS.values())
    for index in range(num_scenes):
        rng = random.Random(f"corpus/{index}")
        rows, cols = parse_grid(GRIDS[index % len(GRIDS)])
        scene = sample_scene(rng, scan_pool("train"), rows, cols)
        question = sample_question(rng, scene)
        yield f"{question.text}\n{question.response}"
        for item in sample_claims(rng, scene):
            yield ANCHOR_TEXT.format(claim=item.claim.text)
