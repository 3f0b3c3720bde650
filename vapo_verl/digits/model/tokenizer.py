"""A byte-level BPE tokenizer in which every word of the digits world is one token.

It has Qwen's special tokens and splits text Qwen's way, with two differences that keep sequences
short and exact: a space joins whatever follows it, and there is no Unicode normalisation, so that
any text survives a round trip.
"""

import random
from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vapo_verl.digits.claims import sample_claims
from vapo_verl.digits.model.samples import ANCHOR_TEXT, ANSWERS, READ_PROMPT
from vapo_verl.digits.questions import sample_question
from vapo_verl.digits.scene import parse_grid, sample_scene, scan_pool

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


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train the tokenizer until every word of the texts is a single token.

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
