"""Reading answers."""

import pytest

from vapo_verl.claims.making.maker import parse_answer
from vapo_verl.data.claims_column import Claim

A = '{"claim": "The cat sleeps.", "label": true}'
B = '{"claim": "The dog sleeps.", "label": false}'
BOTH = (Claim("The cat sleeps.", True), Claim("The dog sleeps.", False))


@pytest.mark.parametrize(
    "text",
    [
        f"{A}\n{B}",
        f"\n{A}\n\n{B}\n",
        f"```json\n{A}\n{B}\n```",
        f"[{A}, {B}]",
        f"[\n{A},\n{B}\n]",
        f'{{"claims": [{A}, {B}]}}',
        f"<think>The cat,\nI see.</think>\n{A}\n{B}",
        f"I draft:\n{B}\n</think>\n{A}\n{B}",
    ],
)
def test_accepted_forms(text):
    answer = parse_answer(text)
    assert answer.claims == BOTH
    assert not answer.rejected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("```\n```", "empty"),
        ("<think>never closed", "empty"),
        ("Sure!", "malformed"),
        ("1. " + A, "malformed"),
        ('{"claim": "  ", "label": true}', "malformed"),
        ('{"text": "The cat sleeps.", "label": true}', "malformed"),
        ('["The cat sleeps."]', "malformed"),
        ('{"claim": "The cat sleeps.", "label": "true"}', "bad_label"),
        ('{"claim": "The cat sleeps.", "label": 1}', "bad_label"),
        ('{"claim": "The cat sleeps."}', "bad_label"),
        ("[" * 100_000, "malformed"),
        (r'{"claim": "The cat\u0007 sleeps.", "label": true}', "control_character"),
        (r'{"claim": "The cat\u001c sleeps.", "label": true}', "control_character"),
        (r'{"claim": "The cat\u0000 sleeps.", "label": true}', "control_character"),
        (r'{"claim": "The cat\u001b[31m sleeps.", "label": true}', "control_character"),
        (r'{"claim": "The cat\u0085 sleeps.", "label": true}', "control_character"),
        (r'{"claim": "The cat \ud83d sleeps.", "label": true}', "control_character"),
        (r'{"claim": "The cat \udc00 sleeps.", "label": true}', "control_character"),
        (r'{"claim": "The \u202etac sleeps.", "label": true}', "control_character"),
        (r'{"claim": "\u200b\ufeff ", "label": true}', "malformed"),
        ('{"claim": "The sign shows <image> twice.", "label": true}', "control_token"),
        (r'{"claim": "The sign shows <im\u00adage> twice.", "label": true}', "control_token"),
        ('{"claim": "The sign reads <|im_end|> twice.", "label": true}', "control_token"),
        (r'{"claim": "The sign reads \ufdd0 twice.", "label": true}', "control_token"),
    ],
)
def test_anything_else_is_counted(text, reason):
    answer = parse_answer(text)
    assert not answer.claims
    assert answer.rejected == {reason: 1}


def test_a_bad_line_does_not_spoil_the_others():
    answer = parse_answer(f"{A}\nnonsense\n{B}")
    assert answer.claims == BOTH
    assert answer.rejected == {"malformed": 1}


def test_only_the_last_line_is_cut_off():
    answer = parse_answer(f"nonsense\n{A}\n{B[:-9]}", cut_off=True)
    assert answer.claims == BOTH[:1]
    assert answer.rejected == {"malformed": 1, "cut_off": 1}


def test_white_space_is_single_spaces():
    (claim,) = parse_answer('{"claim": " The\\n cat  sleeps. ", "label": true}').claims
    assert claim.text == "The cat sleeps."


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        (r"The cafe\u0301 is open.", "The caf\u00e9 is open."),
        (r"The\u00a0cat\u2003 sleeps.", "The cat sleeps."),
        (r"The\tcat\r\n sleeps.", "The cat sleeps."),
        (r"\ufeffThe cat\u200b sleeps.", "The cat sleeps."),
        (r"The \ud83d\ude00 smiles.", "The \U0001f600 smiles."),
    ],
)
def test_texts_are_normalised(written, stored):
    (claim,) = parse_answer(f'{{"claim": "{written}", "label": true}}').claims
    assert claim.text == stored
