r"""The style `math`: answers that are equal in value, however they are written.

The two sides are treated alike, so a pair compares the same in both orders. What is read off an
image (dates, codes, times, scores) is compared as text, mathematics by value.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from vapo_verl.reward.answers import MAX_CHARS, TO_LATEX, Choice, choice, normalised, text_key
from vapo_verl.reward.math_verifier import math_equal
from vapo_verl.reward.quantities import (
    Quantity,
    decimal_key,
    loose_quantity,
    number,
    quantity,
    same_number,
)

_UNDER_IN_BRACKETS = re.compile(r"/\( ?([^(){}/]+?) ?\)$")
_MAX_PARTS = 24
_MAX_DEPTH = 8


def math_match(answer: str, truth: str) -> bool:
    r"""Equal in value. The shape of the two sides decides, in this order:

    1. Numbers by value: `1,000`, `1e3`, `1 \times 10^3`; `1 1/2`, `1.5`, `\frac{3}{2}`. A rounded
       decimal is not an exact value: `3.46` is not `2\sqrt{3}`. Six decimals are.
    2. Choice letters as a set: `B` is `(b)`, `[B]` and `B. cat`; `A, C` is `AC`.
    3. Lists by their parts: in order inside `( )` and `[ ]`, in any order inside `{ }` or without
       brackets. `[1, 2]` is not `(1, 2)`; `\pm 3` is `3, -3`.
    4. A name in front of `=` is dropped: `x=5` is `5`, `Perimeter = 18.8 cm` is `18.8 cm`; two
       names must agree. `4=5` is not `5`: sides without a variable must all be equal.
    5. Quantities: units must be the same where both sides have one, without conversion; `5` is
       `5 cm`. `50\%` is `0.5` and `50`. `5 \mu m` is one where the other side is a quantity or a
       number, and a product of variables elsewhere.
    6. Text as text (`text_key`): words, dates, times, codes, versions, phone numbers, ranges and
       scores (`3-2`), sizes (`3 x 4`), and chemical formulas, which keep their case.
       A ratio `3:2` is `\frac{3}{2}` too, but not `6:4`.
    7. All else symbolically, by the math verifier: expressions, equations, inequalities.

    Answers of over 1,000 characters are compared as text.
    """
    answer, truth = normalised(answer), normalised(truth)
    if max(len(answer), len(truth)) > MAX_CHARS:
        return text_key(answer) == text_key(truth)
    return _same(answer, truth, 0)


def _same(a: str, b: str, depth: int) -> bool:
    a, b = _ascending(_bare(a)), _ascending(_bare(b))
    if a == b or not (a and b) or depth > _MAX_DEPTH:
        return a == b
    for compare in (_numbers, _choices, _named, _lists, _quantities, _texts):
        if (equal := compare(a, b, depth)) is not None:
            return equal
    return _symbolic(a, b)


_ALL_REALS = re.compile(r"\( ?-∞ ?, ?\+?∞ ?\)|(?i:(?:the set of )?all real numbers)")
_ABOUT = re.compile(r"(?i:about|approximately|approx\.?|around|roughly) (?=[\d-])")


def _bare(text: str) -> str:
    """Strip round brackets around a single item, and `=` or `≈` in front."""
    text = _ABOUT.sub("", text.strip().lstrip("=≈ "))
    if _ALL_REALS.fullmatch(text):
        return r"\mathbb{R}"
    while (
        text[:1] == "(" and text[-1:] == ")" and len(_split(text)) == len(_split(text[1:-1])) == 1
    ):
        if not _encloses(text):
            break
        text = text[1:-1].strip()
    return text


def _ascending(text: str) -> str:
    """`5 > x > 2` as `2 < x < 5`."""
    sides = re.split("([>≥])", text)
    is_set = re.search(r"\\[{}]", text) or text.count("|") % 2
    if len(sides) == 1 or is_set or re.search(r"[<≤=≠,;∈∪]|\b(?:and|or)\b", text):
        return text
    return "".join({">": "<", "≥": "≤"}.get(side, side.strip()) for side in reversed(sides))


def _symbolic(a: str, b: str) -> bool:
    if a.count("'") != b.count("'") or _OVERLINED_DIGITS.search(a) or _OVERLINED_DIGITS.search(b):
        return False
    a, b = _with_cases_apart(a, b)
    return math_equal(_as_latex(a), _as_latex(b))


_OVERLINED_DIGITS = re.compile(r"\\(?:overline|dot|bar)\{\d")
_WORD = re.compile(r"\\[A-Za-z]+|[A-Za-z]")


def _with_cases_apart(a: str, b: str) -> tuple[str, str]:
    """Rename capitals where one side has both cases: the parser treats `R` and `r` as equal."""
    letters = [set(_WORD.findall(_FUNCTION.sub("", side))) for side in (a, b)]
    twice = sorted({x for side in letters for x in side if x.isupper() and x.lower() in side})
    free = [x for x in "bchjkpquvwz" if not any({x, x.upper()} & side for side in letters)]
    if len(twice) > len(free):
        return a, b
    names = dict(zip(twice, free, strict=False))
    a, b = (_WORD.sub(lambda word: names.get(word[0], word[0]), side) for side in (a, b))
    return a, b


_MIXED_FACTOR = re.compile(r"(?<![\w.}^])(\d+) ?(\\frac\{\d+\}\{\d+\})")
_FACTOR_IN_BRACKETS = re.compile(r"(?:(?<=\))|(?<![\w.^])(\d[\d.]*)) ?(?=\()|(?<=\)) ?(?=\d)")


def _as_latex(text: str) -> str:
    """LaTeX for the parser, which adds where a number meets another: 2(3) would be 5."""
    text = _FUNCTION.sub(lambda name: name[0] if name[0][0] == "\\" else rf"\{name[0]} ", text)
    text = _MIXED_FACTOR.sub(r"(\1+\2)", text)
    text = _FACTOR_IN_BRACKETS.sub(lambda factor: rf"{factor[1] or ''}\cdot ", text)
    return text.replace("°", r"^{\circ}").replace("%", r"\%").translate(TO_LATEX)


def _numbers(a: str, b: str, depth: int) -> bool | None:
    x, y = number(a), number(b)
    if x is not None and y is not None:
        return same_number(x, y)
    x_key, y_key = decimal_key(a), decimal_key(b)
    return x_key == y_key if x_key and y_key else None


_DIFFERENCE = re.compile(r"[A-Z] - (?![^\W\d_]{2})")
"""`A - 3`, which is a value here; `A - cat` is an option with its text."""


def _choices(a: str, b: str, depth: int) -> bool | None:
    x, y = (None if _DIFFERENCE.match(side) else choice(side) for side in (a, b))
    if x and y:
        if x.letters != y.letters or (x.is_word and y.is_word):
            return False
        return not (x.text and y.text) or _same(x.text, y.text, depth + 1)
    if x:
        return _letters_or_maths(x, a, b, depth)
    return _letters_or_maths(y, b, a, depth) if y else None


def _letters_or_maths(lettered: Choice, text: str, other: str, depth: int) -> bool | None:
    """Only one side has letters: the other may be their text, or the letters are variables."""
    if lettered.text:
        return _same(lettered.text, other, depth + 1)
    is_value = number(other) is not None or quantity(other) is not None
    return None if text.isalpha() and not is_value else False


_BRACKETS = {"(": ")", "[": "]", "{": "}", "⟨": "⟩"}
_MARK = re.compile(r"[(\[{⟨)\]}⟩]|[,;∪]|(?<![A-Za-z])(?:and|or)(?![A-Za-z])")


def _split(text: str) -> list[str]:
    """Parts between commas, semicolons, `and`, `or` and unions outside of all brackets."""
    parts, depth, start = [], 0, 0
    for mark in _MARK.finditer(text):
        if mark[0] in _BRACKETS:
            depth += 1
        elif mark[0] in ")]}⟩":
            depth -= 1
        elif depth == 0:
            parts.append(text[start : mark.start()].strip())
            start = mark.end()
    return [part for part in (*parts, text[start:].strip()) if part]


def _encloses(text: str) -> bool:
    """Whether the first bracket closes with the last sign."""
    depth = 0
    for position, sign in enumerate(text):
        depth += (sign in "([{⟨") - (sign in ")]}⟩")
        if depth == 0:
            return position == len(text) - 1
    return False


def _parts(text: str) -> tuple[str, list[str]]:
    """The brackets around a list, as `()`, and its parts; `±` gives two parts."""
    text = (
        re.sub(r"^<([^<>=≤≥]+,[^<>=≤≥]+)>$", r"⟨\1⟩", text).replace(r"\{", "{").replace(r"\}", "}")
    )
    kind, inner = "", text
    if text[:1] in _BRACKETS and text[-1:] in ")]}⟩" and _encloses(text):
        kind, inner = text[0] + text[-1], text[1:-1]
    parts = []
    for part in _split(inner):
        once = part.count("±") == 1
        parts += [part.replace("±", "+"), part.replace("±", "-")] if once else [part]
    return kind, [re.sub(r"(^|[=(,]) ?\+", r"\1", part) for part in parts]


def _lists(a: str, b: str, depth: int) -> bool | None:
    sides = (a_kind, a_parts), (b_kind, b_parts) = _parts(a), _parts(b)
    if len(a_parts) < 2 and len(b_parts) < 2 and not a_kind and not b_kind:
        return None
    cores = map(_core, (*a_parts, *b_parts))
    if any(number(core) is None and _is_textual(core) for core in cores):
        return _same_text(a, b) or _same_words(a, a_parts, b, b_parts)
    if any(len(x) == 1 and not kind and re.search("[<>≤≥]", x[0]) for kind, x in sides):
        return None
    if len(a_parts) != len(b_parts) or len(a_parts) > _MAX_PARTS:
        return False
    a_parts, b_parts = _roots(a_parts, b_parts)
    kinds = {a_kind.replace("⟨", "(").replace("⟩", ")"), b_kind.replace("⟨", "(").replace("⟩", ")")}
    if kinds <= {"", "{}"} and not _is_named_once(a_parts, b_parts):
        return _same_in_any_order(a_parts, b_parts, depth + 1)
    has_order = len(kinds - {""}) <= 1 and "{}" not in kinds
    return has_order and all(_same(x, y, depth + 1) for x, y in zip(a_parts, b_parts, strict=True))


def _roots(a_parts: list[str], b_parts: list[str]) -> tuple[list[str], list[str]]:
    """The values of `x=1, x=3` and `x_1=1, x_2=3`, which name the roots of one unknown; else the
    parts. With indices on both sides, the names say which value is which."""
    names = [[split_name(part) for part in parts] for parts in (a_parts, b_parts)]
    a_names, b_names = ([name for name in side if name] for side in names)
    if len(a_names) < len(a_parts) or len(b_names) < len(b_parts):
        return a_parts, b_parts
    keys = [{name.key for name in side} for side in (a_names, b_names)]
    for (unknown, *further), others in (keys, keys[::-1]):
        if (
            not further
            and len(unknown) == 1
            and all(re.fullmatch(rf"{re.escape(unknown)}(?:_\w+)?", other) for other in others)
        ):
            return [name.value for name in a_names], [name.value for name in b_names]
    return a_parts, b_parts


def _same_words(a: str, a_parts: Sequence[str], b: str, b_parts: Sequence[str]) -> bool:
    """`red and blue` is `red, blue`, in this order; Roman numerals in any order."""
    if re.search(r"\bor\b", f"{a} {b}") or len(a_parts) != len(b_parts) or len(a_parts) < 2:
        return False
    x, y = ([text_key(part) for part in parts] for parts in (a_parts, b_parts))
    are_numerals = all(re.fullmatch(r"\(?[ivx]+\)?", key) for key in (*x, *y))
    return sorted(x) == sorted(y) if are_numerals else x == y


def _is_named_once(a_parts: Sequence[str], b_parts: Sequence[str]) -> bool:
    """`x=1, y=2` against `1, 2`: if one side only has names, the order counts."""
    names = [{name.key for part in p if (name := split_name(part))} for p in (a_parts, b_parts)]
    return min(map(len, names)) == 0 and max(map(len, names)) > 1


def _same_in_any_order(a_parts: Sequence[str], b_parts: Sequence[str], depth: int) -> bool:
    left = list(b_parts)
    for part in a_parts:
        equal = next((other for other in left if _same(part, other, depth)), None)
        if equal is None:
            return False
        left.remove(equal)
    return True


class Name(NamedTuple):
    """The name in front of a value."""

    key: str
    """Equal for equal names."""
    is_word: bool
    """A word, as `Perimeter`; else a variable, a function or an angle."""
    value: str
    """What follows the `=`."""


_VARIABLE = re.compile(
    r"(?:m ?(?=∠))?(?:∠ ?|△ ?|\||\\(?:overline|vec|hat|widehat|widetilde|bar) ?)?\{?"
    r"(?:[^\W\d_]|[A-Z]{1,4}|d[a-z]/d[a-z]|\\frac\{d[a-z]\}\{d[a-z]\}|\([a-z](?:, ?[a-z])+\))"
    r"(?:_\w|_\{\w+\})?'{0,2}\}?\|?"
    r"(?:\^\{-1\})?(?: ?\((?:[a-zA-Zθ]|-?\d+)(?:, ?[a-z])*\))?"
    r"|∠ ?\d{1,2}|[A-Z]{1,2} ?: ?[A-Z]{1,2}"
    r"|\\?(?:sin|cos|tan|cot|sec|csc) ?(?:∠|△)?[({]?[A-Za-zθαβγ][)}]?"
)
_NO_KEY = re.compile(r"\\(?:overline|vec|bar|(?:wide)?(?:hat|tilde))|[\s{}|\\]|^m(?=∠)")
_WORDS = re.compile(r"[^\W\d_][^\d_=+*/^<>≤≥\\()\[\]{},;∪]{1,60}(?:\([^()=]{1,20}\))?")
_EQUALS = re.compile(r"[=≈∈]|(?<=[^\W\d_]{2}):(?= ?[-\d\\(\[])")
_NEXT_SIDE = re.compile(r"[=≈]")


def _name_key(name: str) -> str:
    return _NO_KEY.sub("", name).casefold()


def split_name(text: str) -> Name | None:
    """The name in front of the first `=`, as `x`, `f(x)` or `Slope`; None without one.

    Args:
        text: in normal form.
    """
    equals = _EQUALS.search(text)
    if equals is None:
        return None
    name, value = text[: equals.start()].strip(), text[equals.end() :].strip()
    if not value or (equals[0] == ":" and not _is_value(value)):
        return None
    if _VARIABLE.fullmatch(name):
        return Name(_name_key(name), False, value)
    if re.fullmatch(_VARIABLE, value) and _is_constant(name) and equals[0] == "=":
        return Name(_name_key(value), False, name)  # 5=x
    is_word = _WORDS.fullmatch(name) and re.search(r"[^\W\d_]{3}|\w\.", name)
    return Name(name.casefold(), True, value) if is_word else None


def _is_value(text: str) -> bool:
    has_number = number(text) is not None or quantity(text) is not None
    return has_number or _encloses(text) or bool(_ratio(text))


def _core(text: str) -> str:
    """The value without its name and unit."""
    named = split_name(text)
    value = named.value if named else text
    measured = quantity(value) or loose_quantity(value)
    return measured.value if measured else value


def _sides(text: str) -> list[str]:
    return _NEXT_SIDE.split(text)


def _named(a: str, b: str, depth: int) -> bool | None:
    if max(len(_split(a)), len(_split(b))) > 1:
        return None
    x, y = split_name(a), split_name(b)
    if x and y:
        return _both_named(x, y, depth)
    named, other = (x, b) if x else (y, a)
    if named is None:
        return _chains(a, b, depth)
    return _is_last_side(named.value, other, depth) if len(_sides(other)) == 1 else None


def _both_named(x: Name, y: Name, depth: int) -> bool | None:
    """Values of names that agree; `y=x-5` and `x=y+5` may still be one equation."""
    if not _names_agree(x, y):
        has_value = x.is_word or y.is_word or _is_constant(x.value) or _is_constant(y.value)
        return False if has_value else None
    if len(_sides(x.value)) > 1 and len(_sides(y.value)) > 1:
        return _same(_sides(x.value)[-1], _sides(y.value)[-1], depth + 1)
    longer, other = (x, y) if len(_sides(x.value)) > 1 else (y, x)
    return _is_last_side(longer.value, other.value, depth)


def _names_agree(x: Name, y: Name) -> bool:
    if x.key == y.key or x.is_word != y.is_word:
        return True
    if not x.is_word:  # y = ... and f(x) = ... name one thing
        return bool(re.fullmatch(r"y[fgh]\(x\)|[fgh]\(x\)y", x.key + y.key))
    shared = set(re.findall(r"\w{3,}", x.key)) & set(re.findall(r"\w{3,}", y.key))
    return bool(shared) or not all(re.search(r"\w{4,}", name.key) for name in (x, y))


def _is_last_side(value: str, other: str, depth: int) -> bool:
    """`other` equals the last side, and every earlier side that has no variable."""
    *before, last = _sides(value)
    constant = [side for side in before if _is_constant(side)]
    return all(_same(side, other, depth + 1) for side in (last, *constant))


def _chains(a: str, b: str, depth: int) -> bool | None:
    """An equation without a name is a value only where it is a chain of equal constants."""
    a_sides, b_sides = _sides(a), _sides(b)
    if _is_textual(a) or _is_textual(b):
        return None
    if len(a_sides) > 1 and len(b_sides) > 1:  # without a variable, solving tells nothing
        return False if all(map(_is_constant, (*a_sides, *b_sides))) else None
    if len(a_sides) == len(b_sides):
        return None
    sides, value = (a_sides, b) if len(a_sides) > 1 else (b_sides, a)
    return all(_is_constant(s) for s in sides) and all(_same(s, value, depth + 1) for s in sides)


_FUNCTION = re.compile(
    r"\\[A-Za-z]+|(?<![A-Za-z])(?:(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|ln|log|exp|lim|max|min|gcd|"
    r"lcm|det)(?![a-z]{2})"
)


def _is_constant(text: str) -> bool:
    """No variable is left; letters of units and functions, `e` and `i` do not count."""
    measured = quantity(text)
    bare = _FUNCTION.sub(" ", measured.value if measured else text)
    return not re.search(r"[A-Za-zα-ω]", re.sub(r"(?<![A-Za-z])[eiπ](?![A-Za-z])", "", bare))


def _quantities(a: str, b: str, depth: int) -> bool | None:
    """Two texts that are quantities only in a loose reading may be products: None if unequal."""
    strict = [quantity(side) for side in (a, b)]
    x, y = (found or loose_quantity(side) for found, side in zip(strict, (a, b), strict=True))
    if x and y:
        is_one_unit = x.unit == y.unit or _same_bare_unit(a, b)
        equal = is_one_unit and _same(x.value, y.value, depth + 1)
        return equal or (False if any(strict) else None)
    measured, other = (x, b) if x else (y, a)
    if measured is None or not (any(strict) or number(other) is not None):
        return None
    is_product = "μ" in measured.unit and "μ" in other  # 2μm and 2mμ
    return None if is_product else _one_unit(measured, other, depth)


def _same_bare_unit(a: str, b: str) -> bool:
    """Whether units agree without brackets: `J/(g·K)` is often written `J/g·K`."""
    x, y = (quantity(_UNDER_IN_BRACKETS.sub(r"/\1", normalised(side))) for side in (a, b))
    return bool(x and y and x.unit == y.unit)


def _one_unit(measured: Quantity, other: str, depth: int) -> bool:
    """A unit may be left out; a percentage may be a fraction of 1 too."""
    if not measured.is_sure or (number(other) is None and _is_textual(other)):
        return False
    if _same(measured.value, other, depth + 1):
        return True
    whole = {"%": 100, "‰": 1000}.get(measured.unit)
    if whole is None:
        return False
    x, y = number(measured.value), number(other)
    if x is not None and y is not None:
        return same_number(x / whole, y)
    return math_equal(rf"\frac{{{_as_latex(measured.value)}}}{{{whole}}}", _as_latex(other))


_OF_TEXT = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af#@&?\"_→∠△∥⊥≅]|\.\.|\d ?'|[A-Za-z]\d|https?:|www\."
)
_OF_DIGITS = re.compile(
    r"[\d\s()+./:-]*\d[ )]*-[ (]*\d[\d\s()+./:-]*"  # 3-2, 2023-01-02, (555) 123-4567
    r"|\d+(?: ?/ ?\d+){2,}|v?\d+(?:\.\d+){2,}|\+?\d+(?: \d+)+|\d+(?: ?: ?\d+)+"
    r"|\d[\d.]*(?: ?× ?\d[\d.]*)+"
    r"|[A-Z]+ ?[- ] ?\d+|\d+ ?-? ?[A-Z]+|0\d*[a-z]|[NSEW] ?\d[\d.]*° ?[NSEW]"
)
_LETTERS = re.compile(r"(?:(?![Ͱ-Ͽ])[^\W\d_]){2,}")
_OPERATOR = re.compile(r"[=+^×÷·*<>≤≥√]|\\[a-z]")


def _is_textual(text: str) -> bool:
    """Whether the text is read off an image rather than computed; see `math_match`."""
    if decimal_key(text):  # 3e8
        return False
    if _OF_DIGITS.fullmatch(text) or text[-1:] in "+-*/=<>":
        return True
    bare = _FUNCTION.sub(" ", re.sub(r"_(?:\w|\{\w+\})", "", text))
    if _OF_TEXT.search(bare):
        return True
    longest = max(map(len, _LETTERS.findall(bare)), default=0)
    return longest > 3 or (longest > 1 and not _OPERATOR.search(text))


def _texts(a: str, b: str, depth: int) -> bool | None:
    if _same_text(a, b):
        return True
    x, y = _ratio(a), _ratio(b)
    if x and y and (":" in a or ":" in b):
        return x == y
    return False if _is_textual(a) or _is_textual(b) else None


def _ratio(text: str) -> tuple[str | None, ...]:
    """The numbers of `3:2`, or of that ratio as a fraction, not reduced; `3:02` is no `3:2`."""
    text = re.sub(r"\\frac\{([\d.]+)\}\{([\d.]+)\}", r"\1/\2", text)
    if not re.fullmatch(r"[\d.]+(?:(?: ?: ?[\d.]+)+| ?/ ?[\d.]+)", text):
        return ()
    first, *others = re.split(" ?[:/] ?", text)
    return decimal_key(first), *(x if x[0] == "0" else decimal_key(x) for x in others)


_ELEMENT_NAMES = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se "
    "Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba Hf Ta W Re Os Ir Pt Au Hg Tl "
    "Pb Bi Po At Rn Fr Ra Th U Pu"
)
_ELEMENT = "|".join(sorted(_ELEMENT_NAMES.split(), key=len, reverse=True))
_FORMULA = re.compile(rf"(?:(?:{_ELEMENT}|[()])\d*)+[+-]?")
_WORDS_TOO = frozenset({"no", "in", "he", "as", "be", "at", "i", "on", "us", "so"})


def _same_text(a: str, b: str) -> bool:
    """Equal keys; chemical formulas that differ in case are different substances."""
    if text_key(a) != text_key(b):
        return False
    x, y = (re.sub(r"[\s_{}^]", "", text) for text in (a, b))
    are_formulas = _FORMULA.fullmatch(x) and _FORMULA.fullmatch(y)
    return x == y or not are_formulas or x.casefold() in _WORDS_TOO
