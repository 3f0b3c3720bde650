"""The answer tokens come from the tokenizer, and the question's form is checked against it."""

import pytest

from vapo_verl.anchors import bind_question
from vapo_verl.config import AnchorConfig

DEFAULT = AnchorConfig()


@pytest.fixture
def tokenizer(packaged_tokenizer):
    return packaged_tokenizer


def bind(tokenizer, question=DEFAULT.question, yes=DEFAULT.yes_words, no=DEFAULT.no_words):
    return bind_question(tokenizer, question, yes, no)


def test_answers_are_the_single_tokens_of_the_first_fitting_words(tokenizer):
    question = bind(tokenizer)
    assert tokenizer.decode([question.yes_id]) == " Yes"
    assert tokenizer.decode([question.no_id]) == " No"


def test_words_are_tried_in_order(tokenizer):
    assert bind(tokenizer, yes=("Affirmative!", "Yes")).yes_id == tokenizer.encode("Yes")[0]


def test_question_ids_decode_to_the_question_and_leave_braces_in_claims_alone(tokenizer):
    claim = "The set {claim} holds {3}."
    ids = bind(tokenizer).token_ids(claim)
    assert tokenizer.decode(ids) == DEFAULT.question.replace("{claim}", claim)


def test_a_word_of_several_tokens_is_refused_with_its_key(tokenizer):
    with pytest.raises(ValueError, match=r"vapo\.anchors\.yes_words=\['Quite right'\]"):
        bind(tokenizer, yes=("Quite right",))


def test_one_token_for_both_answers_is_refused(tokenizer):
    with pytest.raises(ValueError, match="the same token"):
        bind(tokenizer, no=DEFAULT.yes_words)


class MergingTokenizer:
    """Joins the question's last character with what follows, as ``":Y"`` might be."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        _, mark, tail = text.rpartition(":")
        return [1, 2 if not tail else 3 + len(tail)] if mark else [1]


def test_an_answer_that_would_merge_with_the_question_is_refused():
    with pytest.raises(ValueError, match="single token right after the question"):
        bind(MergingTokenizer())
