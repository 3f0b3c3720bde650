import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from vapo_verl.digits.claims import sample_claims
from vapo_verl.digits.model import model_dir
from vapo_verl.digits.model.recipe import SPECIAL_TOKENS, corpus, train_tokenizer
from vapo_verl.digits.model.samples import ANCHOR_TEXT, READ_PROMPT
from vapo_verl.digits.questions import QUESTION_SETS, sample_question
from vapo_verl.digits.scene import sample_scene, scan_pool

TOKENIZER = AutoTokenizer.from_pretrained(model_dir())


@given(st.text())
def test_round_trip_of_any_text(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids) == text


@given(st.text(alphabet="the top 37<>/\\{}\n.", max_size=40))
def test_round_trip_near_the_words(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("question_set", QUESTION_SETS)
@pytest.mark.parametrize("grid", [(2, 2), (2, 3), (3, 3)])
def test_words_are_single_tokens_and_spaces_cost_none(grid, question_set):
    rng = random.Random(7)
    for _ in range(50):
        scene = sample_scene(rng, scan_pool("test"), *grid)
        question = sample_question(rng, scene, question_set)
        claims = [item.claim.text for item in sample_claims(rng, scene)]
        for text in (READ_PROMPT, question.text, question.response, *claims):
            words = re.findall(r"</?think>|\\boxed|[A-Za-z]+|\S", text)
            assert len(TOKENIZER.encode(text, add_special_tokens=False)) == len(words), text


def test_anchor_text_tokens():
    ids = TOKENIZER.encode(ANCHOR_TEXT.format(claim="The top left digit is 7."))
    pieces = "\n|<anchor>|The| top| left| digit| is| 7|.| Is| this| claim| correct|?"
    pieces += "| Answer| (|Yes|/|No|)|:"
    assert [TOKENIZER.decode([token]) for token in ids] == pieces.split("|")


def test_answer_words_are_four_distinct_single_tokens():
    ids = [TOKENIZER.encode(text) for text in ("Yes", " Yes", "No", " No")]
    assert [len(of_text) for of_text in ids] == [1] * 4
    assert len({of_text[0] for of_text in ids}) == 4


def test_tags_survive_decoding_without_special_tokens():
    text = "<think>top left is red 3.</think>\\boxed{3}"
    ids = TOKENIZER.encode(text + "<|im_end|>")
    assert ids[-1] == TOKENIZER.eos_token_id
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text
    assert (
        TOKENIZER.decode(TOKENIZER.encode("\n<anchor>a"), skip_special_tokens=True) == "\n<anchor>a"
    )


def test_special_tokens_are_qwens():
    assert TOKENIZER.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(8))
    assert (TOKENIZER.eos_token, TOKENIZER.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_chat_template_has_qwens_form_and_no_system_turn():
    content = [{"type": "image"}, {"type": "text", "text": "Read all digits."}]
    text = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Read all digits.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_training_again_gives_the_packaged_tokenizer():
    assert train_tokenizer(corpus()).get_vocab() == TOKENIZER.get_vocab()
