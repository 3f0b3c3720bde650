r"""When two short answers are the same: as text, as integers, as a choice, as mathematics.

The cheap comparisons settle most answers, wrong ones included; only what may be equal in value
and differs in writing (`\frac{1}{2}` and `0.5`) goes to the symbolic judge.
"""

import re

_INTEGER = re.compile(r"([+-]?)0*(\d+)", re.ASCII)
_CHOICE_TRUTH = re.compile(r"\(?([A-Z])\)?\.?")
_CHOICE_ANSWER = re.compile(r"(?:option|choice)?\s*\(?([a-z])\)?(?:[.:)].*)?", re.I | re.S)
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mbox|mathbf)[a-z]*\s*\{([^{}]*)\}")
_LATEX_SPACE = re.compile(r"\\[,;:! ]|~|\\quad|\s+")
_WORDS = re.compile(r"(?=.*[^\W\d_]{2})[^\d\\=+*/^<>|]+")


def exact_match(answer: str, truth: str) -> bool:
    """Equal as text (case, spacing and `$` aside); whole numbers as integers: 007 is 7."""
    answer, truth = plain(answer), plain(truth)
    return _canonical_integer(answer) == _canonical_integer(truth)


def math_match(answer: str, truth: str) -> bool:
    r"""Equal in value, for answers of maths and multiple-choice sets.

    In this order: the same text; a choice letter, when the truth is one (`B` accepts `(b)`,
    `B. 12`, `\text{B}`); a word, when the truth is letters only, which must then match as
    text (as products of variables `on` would equal `no`); two integers; else symbolically.
    """
    if exact_match(answer, truth):
        return True
    plain_answer, plain_truth = plain(answer), plain(truth)
    if choice := _CHOICE_TRUTH.fullmatch(_unwrap(truth)):
        chosen = _CHOICE_ANSWER.fullmatch(plain_answer)
        return chosen is not None and chosen[1].upper() == choice[1]
    if _WORDS.fullmatch(plain_truth) or not plain_answer:
        return False
    if _INTEGER.fullmatch(plain_answer) and _INTEGER.fullmatch(plain_truth):
        return False
    from vapo_verl.reward.judge import judge_equal

    return judge_equal(answer.replace("$", ""), truth.replace("$", ""))


def plain(text: str) -> str:
    r"""Text without LaTeX spaces, `$`, `\text{}` around words, case, or a closing full stop."""
    return _unwrap(text).casefold().removesuffix(".").strip()


def _unwrap(text: str) -> str:
    text = _LATEX_SPACE.sub(" ", text.replace(r"\$", "").replace("$", ""))
    return _LATEX_SPACE.sub(" ", _TEXT_COMMAND.sub(r"\1", text)).strip()


def _canonical_integer(text: str) -> str:
    """Sign and digits of an integer, any other text unchanged; no int(), which has a size limit."""
    match = _INTEGER.fullmatch(text)
    if match is None:
        return text
    sign = "-" if match[1] == "-" and match[2] != "0" else ""
    return sign + match[2]
