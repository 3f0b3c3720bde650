"""A probe reads the rollout's own tokens, and its two answers share all probability."""

import math

import numpy as np
import pytest

from vapo_verl.anchors import Anchor, AnchorQuestion, ProbeReply, probe_anchors, token_texts

YES, NO = 901, 902


class OneTokenPerCharacter:
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [ord(character) for character in text]


QUESTION = AnchorQuestion(
    template="?{claim}:", tokenizer=OneTokenPerCharacter(), yes_id=YES, no_id=NO
)


def anchor(position: int, label: bool = True) -> Anchor:
    return Anchor(position=position, claim="ab", label=label, own_boundary=True)


async def test_input_is_prompt_then_response_up_to_the_cut_then_question():
    seen = []

    async def ask(probes):
        seen.extend(probes.prompts())
        return [ProbeReply(token_id=YES, logprob=0.0)]

    await probe_anchors(ask, QUESTION, [anchor(2)], [1, 2, 3], [10, 11, 12, 13])
    assert seen == [[1, 2, 3, 10, 11, ord("?"), ord("a"), ord("b"), ord(":")]]


async def test_a_sequence_counts_once_however_many_cuts_it_has():
    asked = []

    async def ask(probes):
        asked.append(probes)
        return [ProbeReply(token_id=YES, logprob=0.0)] * len(probes.cuts)

    cuts = [anchor(1), anchor(5), anchor(8)]
    results = await probe_anchors(ask, QUESTION, cuts, [1, 2, 3], list(range(10, 20)))
    question = len("?ab:")
    assert [result.num_prompt_tokens for result in results] == [4 + question, 8 + question, 15]
    [probes] = asked
    assert [len(ids) for ids in probes.prompts()] == [8, 12, 15]
    assert probes.num_tokens == 3 + 8 + 3 * question  # the tokens after the last cut do not count


def test_a_token_is_decoded_once():
    class Counting:
        def __init__(self):
            self.decoded = []

        def decode(self, ids):
            self.decoded.extend(ids)
            return chr(*ids)

    tokenizer = Counting()
    assert token_texts(tokenizer, [97, 98, 97]) == ["a", "b", "a"]
    assert token_texts(tokenizer, [98, 99]) == ["b", "c"]
    assert sorted(tokenizer.decoded) == [97, 98, 99]
    assert token_texts(Counting(), [97]) == ["a"]  # another tokenizer has texts of its own


async def test_p_yes_and_correctness_for_both_answers():
    async def ask(_):
        return [
            ProbeReply(token_id=YES, logprob=math.log(0.8)),
            ProbeReply(token_id=NO, logprob=math.log(0.7)),
        ]

    yes, no = await probe_anchors(
        ask, QUESTION, [anchor(1, label=False), anchor(2, label=False)], [1], [10, 11]
    )
    assert (yes.answer, yes.correct) == (True, False)
    assert yes.p_yes == pytest.approx(0.8)
    assert yes.p_label == pytest.approx(0.2)
    assert (no.answer, no.correct) == (False, True)
    assert no.p_yes == pytest.approx(0.3)  # 1 - 0.7
    assert no.p_label == pytest.approx(0.7)


async def test_the_likelier_answer_counts_though_the_other_one_was_drawn():
    async def ask(_):
        return [ProbeReply(token_id=YES, logprob=math.log(0.2))]

    [result] = await probe_anchors(ask, QUESTION, [anchor(1, label=False)], [1], [10])
    assert (result.answer, result.correct) == (False, True)
    assert result.p_yes == pytest.approx(0.2)


@pytest.mark.parametrize("drawn", [YES, NO])
async def test_a_tie_is_one_answer_whichever_was_drawn(drawn):
    half = float(np.log(np.float32(0.5)))  # rounded: its exponential is below 0.5

    async def ask(_):
        return [ProbeReply(token_id=drawn, logprob=half)]

    [result] = await probe_anchors(ask, QUESTION, [anchor(1, label=True)], [1], [10])
    assert (result.p_yes, result.answer) == (0.5, True)


async def test_an_engine_that_answers_something_else_is_an_error():
    async def ask(_):
        return [ProbeReply(token_id=5, logprob=0.0)]

    with pytest.raises(RuntimeError, match="neither yes"):
        await probe_anchors(ask, QUESTION, [anchor(1)], [1], [10])
