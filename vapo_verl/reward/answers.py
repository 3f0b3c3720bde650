r"""Normalise answers: one notation for both sides, a key of the text, and option letters.

Pure, with the standard library alone. Styles and the rules of benchmarks build on:

- `normalised(text)`: one way of writing (width, signs, LaTeX wrappers, thousands, markdown);
- `text_key(text)`: texts are equal if their keys are (case, spaces, articles);
- `choice(text)`: option letters, with the text behind a single one; None without letters;
- in `quantities.py`: `number(text)`, `same_number(a, b)`, `quantity(text)` and its unit.

All take raw text and normalise it themselves.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

MAX_CHARS = 1000
"""A longer answer is compared as text only."""

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴-⁹⁺⁻ⁿ]+")
_SUBSCRIPT = re.compile("[₀-₉₊₋]+")
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")
_NOT_CIRCLED = re.compile("[^①-⑳]+|^[①-⑳]$")
"""`①③` are two options and not 13; alone, `①` is 1."""
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("−‐‑‒–—―⁃˗", "-"),
        **dict.fromkeys("º˚", "°"),
        **dict.fromkeys("‘’‛′ʹ", "'"),
        "″": "''",
        **dict.fromkeys("“”„«»「」『』", '"'),
        **{"∶": ":", "⁄": "/", "∕": "/", "⋅": "·", "∙": "·", "、": ",", "٫": ".", "٬": ","},
        **{"〈": "⟨", "〉": "⟩", "⩽": "≤", "⩾": "≥", "≦": "≤", "≧": "≥", "⟶": "→", "✕": "×"},
    }
)
_COMMANDS = {
    **{"cdot": "·", "times": "×", "div": "÷", "pm": "±", "mp": "∓", "infty": "∞", "to": "→"},
    **{"le": "≤", "leq": "≤", "leqslant": "≤", "ge": "≥", "geq": "≥", "geqslant": "≥"},
    **{"ne": "≠", "neq": "≠", "approx": "≈", "angle": "∠", "triangle": "△", "cup": "∪", "cap": "∩"},
    **{"in": "∈", "rightarrow": "→", "longrightarrow": "→", "langle": "⟨", "rangle": "⟩"},
    **{"lt": "<", "gt": ">", "colon": ":", "degree": "°", "textdegree": "°", "circ": "°"},
    **{"pounds": "£", "euro": "€", "yen": "¥", "vert": "|", "lvert": "|", "rvert": "|", "mid": "|"},
    **{"emptyset": "∅", "varnothing": "∅", "parallel": "∥", "perp": "⊥", "prime": "'"},
    **{"ldots": "...", "dots": "...", "cdots": "...", "lbrace": r"\{", "rbrace": r"\}"},
    **{"lbrack": "[", "rbrack": "]", "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac"},
    **{"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "varepsilon": "ε"},
    **{"theta": "θ", "lambda": "λ", "mu": "μ", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ"},
    **{"phi": "φ", "varphi": "φ", "omega": "ω", "Delta": "Δ", "Omega": "Ω"},
    **{"micro": "μ", "upmu": "μ", "textmu": "μ", "ohm": "Ω", "AA": "Å", "angstrom": "Å"},
    **{"celsius": "°C", "degreeCelsius": "°C"},
}
"""LaTeX commands that have a sign of their own."""
TO_LATEX = str.maketrans(
    {
        sign: f"\\{name} "
        for name, sign in reversed(_COMMANDS.items())
        if len(sign) == 1 and not sign.isascii()
    }
)
"""For `str.translate`: the way back, for a parser of LaTeX."""
_LAYOUT_NAMES = (
    "left right middle big Big bigg Bigg bigl bigr Bigl Bigr displaystyle textstyle limits rm bf "
    "it text textrm textbf textit textsf texttt textnormal emph underline mathrm mathbf mathit "
    "mathsf mathtt mathnormal mbox hbox fbox boxed operatorname boldsymbol unit bm ensuremath"
)
_LAYOUT = frozenset(_LAYOUT_NAMES.split())
_SPACES = frozenset(("quad", "qquad", "thinspace", "medspace", "thickspace", "enspace", "space"))
_PAIRS = {"<=": "≤", ">=": "≥", "!=": "≠", "==": "=", "->": "→"}
_TOKEN = re.compile(r"\\[A-Za-z]+\*?|\\.|[{}]|[^\\{}]+|\\", re.S)
_DELIMITED = re.compile(r"\\(?:left|right)\s*\.|\\[()\[\]]|\\!")
_RING = re.compile(
    r"\\(?:mathring|overset\{\\circ\}|r(?![A-Za-z]))\s*(?:\{(?:A|\\(?:text|mathrm)\{A\})\}|A)"
)
"""`Å` as a letter with a ring above."""
_ENDS_IN_NUMBER = re.compile(r"(?<![\w.\\])\d[\d.]*$|[})]$")
_MATHS = re.compile(r"\$\$([^$]+)\$\$|\$([^\s$](?:[^$]*[^\s$])?)\$(?!\d)")
_ALL_MATHS = re.compile(r"\s*\$\$?(?=\s*[^$\s])([^$]+)\$\$?\s*")
_DOLLAR = re.compile(r"(?:US ?)?\$(?=\s*[\d.])|(?<=\d)\s?\$|\\\$")
_THOUSANDS = re.compile(
    r"(?<![\w.,])\d{1,3}(?:,\d{3})+(?![\d,])"
    r"|(?<![\w.,/^])(?<!\w-)\d{1,3}(?: \d{3})+(?![\w/^]| \d|,\d)"
)
_LIST_OR_NUMBER = re.compile(
    r"(?P<list>[(\[{]\s*-?\d+(?:\.\d+)?(?:,-?\d+(?:\.\d+)?)+\s*\\?[)\]}])"
    rf"|(?:{_THOUSANDS.pattern})"
)
_BOLD = re.compile(r"(?<![\w*])(\*{1,3})(?![\s*])([^*]+?)(?<!\s)\1(?![\w*])")
_UNDERLINED = re.compile(r"^__?([^_]+)__?$")
_ANNOUNCED = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:(?:final|correct|right|best)\s+)?"
    r"(?:answer|ans\.?|option|choice)\s*(?:\bis\b\s*:?|:|=)\s*(?=\S)"
    r"|(?:正确)?答案\s*(?:是|应?为|选)?\s*:?\s*(?=\S)|选项?\s*:?\s*(?=(?:[A-Z]{1,6}|[a-z])(?![A-Za-z]))",
    re.I,
)
_QUOTED = re.compile(r"""(["'])(?=\S)((?:(?!\1).)*\S)\1""", re.S)
_CJK = r"[\u3040-\u30ff\u3400-\u9fff]"
_STOP = re.compile(r"(?<![.。,;])[.。,;]$")


@lru_cache(maxsize=4096)
def normalised(text: str) -> str:
    r"""One notation for texts that read the same; applied again it changes nothing more.

    - Unicode: NFKC; digits of every script as 0-9, all dashes and minus signs as `-`, `½` as
      `\frac{1}{2}`, superscripts as `^2`, subscripts as `_2`; invisible characters dropped.
    - LaTeX: wrappers (`$`, `\(`, `\text`, `\mathrm`, `\left`, `\boxed`, idle braces) dropped,
      `\dfrac` as `\frac`, `\frac12` with braces, commands that have a sign as that sign
      (`\pi` as π, `^\circ` as °), spaces as spaces.
    - Numbers: thousands joined (`1,000`, `1\,000`, `1 000`), except in a bracketed list of
      numbers as `(1,200)`. A `$` before or behind a number is `USD`.
    - Markdown emphasis, quotes around all, `Answer:` in front and a closing full stop dropped.

    Case, order and words stay. Any text is accepted. The time is linear in its length: a text of
    over 1,000 characters goes through the rules three times, others until nothing changes.
    """
    rounds = 3 if len(text) > MAX_CHARS else len(text) + 1
    for _ in range(rounds):
        before, text = text, _one_pass(text)
        if text == before:
            break
    return text


_ROOT_SIGN = r"(?:√|(?<![A-Za-z\\])sqrt) ?"
_ENDS_IN_ROOT = re.compile(f"{_ROOT_SIGN}$")
_ROOT = re.compile(rf"{_ROOT_SIGN}(?:\{{([^{{}}]*)\}}|\(([^()]*)\)|(\d+(?:\.\d+)?|[^\W\d_]+))")
"""A root without a bar reaches over brackets, a number, or letters: `√3π` is `\\sqrt{3}π`."""


def _one_pass(text: str) -> str:
    text = text if text.isascii() else _unicode(text)
    if not {"\\", "$", "{", "~"}.isdisjoint(text):
        text = _latex(text)
    text = " ".join(text.split())
    text = re.sub(r" ?([\^_]) ?", r"\1", text)
    text = re.sub(r" ?\^?(?:\{ ?° ?\}|°)", "°", text)
    text = text.replace("^{'}", "'").replace("^{''}", "''").replace("^'", "'")
    text = re.sub(r"(?<![A-Za-z_\d.])(\d+(?:\.\d+)?) ?''", r'\1"', text)
    text = re.sub(r"° (?=[CFKT](?![A-Za-z]))", "°", text)
    text = re.sub(r"([\^_])\{ ?(\w|[+-]) ?\}", r"\1\2", text)
    text = re.sub(r"(?<=\d)\^o(?=[CF]?(?![A-Za-z]))", "°", text)
    text = re.sub(r"\^(-?\d{2,}|-\d)(?![\d}])", r"^{\1}", text)
    text = re.sub(r"\\frac ?(\d)(?=[\d{])", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac\{\d+\}) ?(\d)", r"\1{\2}", text)
    text = re.sub(r"\\frac ([A-Za-z])([A-Za-z])(?![A-Za-z])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\sqrt ?(\d)", r"\\sqrt{\1}", text)
    text = _ROOT.sub(r"\\sqrt{\1\2\3}", text)
    text = re.sub(r"(?<![A-Za-z\\])pi(?![A-Za-z])", "π", text)
    text = re.sub(r"(?<![A-Za-z\\])inf(?:inity)?(?![A-Za-z])", "∞", text)
    text = re.sub(r"<=|>=|!=|==|->", lambda sign: _PAIRS[sign[0]], text)
    text = re.sub(r"(?<=\d) ?[xX] ?(?=\d)", "×", text)
    text = _join_thousands(text)
    text = re.sub(r"(?<=[\w)])\*\*(?=[\w(-])", "^", text.replace("`", ""))
    text = _UNDERLINED.sub(r"\1", _BOLD.sub(r"\2", text))
    if announced := _ANNOUNCED.match(text):
        text = text[announced.end() :]
    text = text.strip()
    if quoted := _QUOTED.fullmatch(text):
        text = quoted[2]
    return _STOP.sub("", text).strip()


def _unicode(text: str) -> str:
    text = _INVISIBLE.sub("", text)
    text = _SUPERSCRIPT.sub(lambda run: f"^{{{unicodedata.normalize('NFKC', run[0])}}}", text)
    text = _SUBSCRIPT.sub(lambda run: f"_{{{unicodedata.normalize('NFKC', run[0])}}}", text)
    text = text.replace("ℝ", r"\mathbb{R}")
    text = _VULGAR.sub(_vulgar, text.translate(_SIGNS))
    text = _NOT_CIRCLED.sub(lambda run: unicodedata.normalize("NFKC", run[0]), text)
    text = text.translate(_SIGNS)
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)


def _vulgar(match: re.Match[str]) -> str:
    over, under = unicodedata.normalize("NFKC", match[0]).split("⁄")
    return rf" \frac{{{over}}}{{{under}}}"


def _latex(text: str) -> str:
    text = _DELIMITED.sub(lambda match: "" if match[0] == r"\!" else " ", text)
    text = re.sub(r"\\\$", " USD ", re.sub(r"\\circ(?=[A-Z]\b)", "° ", text))
    text = re.sub(r"(?<=\d)\s*\\deg(?![A-Za-z])", "°", _RING.sub("Å", text))
    if whole := _ALL_MATHS.fullmatch(text):
        text = whole[1]
    text = _MATHS.sub(lambda maths: f" {maths[1] or maths[2]} ", text)
    text = _DOLLAR.sub(" USD ", text).replace("$", " ")
    return _without_wrappers(text.replace("~", " "))


def _without_wrappers(text: str) -> str:
    r"""Drop layout commands and braces that only group; those of scripts and arguments stay."""
    has_rows = r"\begin" in text
    out: list[str] = []
    openers: list[list[int | str]] = []  # kind ("" dropped, "^" a script's, "\\"), place, list?
    takes = ""  # what the next brace would be an argument of
    is_layout = False
    for token in _TOKEN.findall(text):
        name = token[1:]
        if token == "{":
            if is_layout and _ENDS_IN_NUMBER.search("".join(out[-3:])[-40:]):
                out.append(" ")
            openers.append(["text" if is_layout else takes, len(out), ""])
            out.append("{" if openers[-1][0] in ("^", "\\") else "")
            takes, is_layout = "", False
        elif token == "}":
            kind, place, is_list = openers.pop() if openers else ("", 0, "")
            if kind == "" and is_list:  # {1, 2} is a set, in spite of LaTeX
                out[int(place)] = r"\{"
            out.append("}" if kind in ("^", "\\") else r"\}" if kind == "" and is_list else "")
            takes = "\\" if kind == "\\" else ""
        elif token[0] == "\\" and name.rstrip("*").isalpha():
            is_layout = name in _LAYOUT
            known = " " if name in _SPACES else _COMMANDS.get(name, token)
            out.append("" if is_layout else known)
            takes = "" if is_layout or known[0] != "\\" else "\\"
        elif token[0] == "\\":
            out.append(_escaped(token, has_rows))
            takes, is_layout = "", False
        else:
            out.append(token)
            if openers and "," in token and (token.strip(" ,") or openers[-1][1] != len(out) - 2):
                openers[-1][2] = "list"
            if token.strip():
                is_layout = False
                takes = "^" if token.rstrip()[-1] in "^_" else ""
                takes = "\\" if token[-1] == "]" or _ENDS_IN_ROOT.search(token) else takes
    return "".join(out)


def _escaped(token: str, has_rows: bool) -> str:
    r"""`\{` and row ends of a matrix stay; `\%` is `%`; other escaped signs are spaces."""
    sign = token[1:]
    if sign in "{}" or not sign or (sign == "\\" and has_rows):
        return token
    return sign if sign in "%#&_|" else " "


def _join_thousands(text: str) -> str:
    """Drop separators of thousands; in a bracketed list only if a part is like `050`."""

    def join(match: re.Match[str]) -> str:
        if match.lastgroup == "list" and not re.search(r",0\d\d", match[0]):
            return match[0]
        return _THOUSANDS.sub(lambda digits: re.sub("[, ]", "", digits[0]), match[0])

    return _LIST_OR_NUMBER.sub(join, text)


def text_key(text: str, *, drop_article: bool = True) -> str:
    """Key that is equal for equal texts, ignoring case, spaces at signs and a leading article.

    Spaces between two letters or two digits count, as `1 12` is not `11 2`; not those between
    a letter and a digit, or in Chinese text. `3 p.m.` is `3pm`, and `H_2O` is `H2O`.
    """
    text = normalised(text).casefold()
    text = re.sub(r"_\{([^{}]*)\}", r"\1", text).replace("_", "")
    text = re.sub(r"(?<=\d) ?([ap])(?:\. ?m\b\.?|m\b)", r"\1m", text)
    text = re.sub(r"(?<=[^\W\d_][^\W\d_])[!?]+$", "", text)
    if drop_article:
        text = re.sub(r"^(?:the|an?) (?=\w{2})", "", text)
    text = re.sub(r"(?<![^\W_]) | (?![^\W_])|(?<=\d) (?=\D)|(?<=[^\W\d]) (?=\d)", "", text)
    text = re.sub(rf"(?<={_CJK}) | (?={_CJK})", "", text)
    return text or normalised(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The options that an answer picks."""

    letters: frozenset[str]
    """Capital letters, or circled numbers."""
    text: str = ""
    """Text after a single letter: `cat` of `A. cat`; empty without."""
    is_word: bool = False
    """Letters without marks between them, not in alphabetical order: `CAB` may be a word."""


_LETTER = r"(?:\([A-Za-z]\)|[A-Za-z][.)]?)"
_MARKED_LETTERS = re.compile(
    rf"(?:both |options? |choices? )?{_LETTER}(?:(?: ?[,;&和与及] ?| )(?:and )?{_LETTER}){{1,25}}"
    r"|(?:\([A-Z]\)){2,26}"
)
_BRACKETED_LETTERS = re.compile(r"\\?[(\[{] ?([A-J](?: ?[,;] ?[A-J])+) ?\\?[)\]}]")
_CIRCLED_NUMBERS = re.compile("[①-⑳](?: ?(?:[,;&和与及]|and)? ?[①-⑳])+")
_BARE_LETTERS = re.compile(r"[A-F]{2,6}")
_ONE_LETTER = re.compile(
    r"(?:option |choice |answer )?"
    r"(?:\\?[(\[{<] ?(?P<inside>[A-Za-z]) ?\\?[)\]}>] ?[.:]?"
    r"|(?P<bare>[A-Za-z])"
    r"(?:$| ?选项|(?<=(?-i:[A-J]))(?:(?= \()| -(?= ))| ?[)\]]| ?[.:](?![A-Za-z])))"
    r" ?(?P<text>.*)",
    re.I | re.S,
)
_GOES_ON = re.compile(r"(?:or|and|nor)\b|[,;/&|+*^=<>×·÷≤≥]|-(?!\d)")
_OTHER_LETTER = re.compile(
    r"(?:\b(?:or|and)|[,;/&]) ?\(?[A-Z](?:[).:]|$)|(?:^| )(?:\([A-J]\)|[A-J][).:])(?: |$)"
)


def choice(text: str) -> Choice | None:
    r"""The option letters of an answer: `B`, `(b)`, `[B]`, `**B**`, `B. cat`, `A, C`, `AC`.

    None where no letter stands alone, and where an answer hedges, as `A) or B)` does.
    """
    text = normalised(text)
    if len(text) > MAX_CHARS:
        return None
    if text[:1] in ("[", "(", "\\"):
        text = re.sub("[\"']", "", text)  # ["A", "C"]
    if _BARE_LETTERS.fullmatch(text):
        is_set = len(set(text)) == len(text)
        letters = frozenset(text)
        return Choice(letters=letters, is_word=list(text) != sorted(text)) if is_set else None
    bracketed = _BRACKETED_LETTERS.fullmatch(text)
    if _CIRCLED_NUMBERS.fullmatch(text):
        return Choice(letters=frozenset(re.findall("[①-⑳]", text)))
    several = bracketed[1] if bracketed else text
    if bracketed or _is_several(several):
        marks = re.sub(r"(?i)\b(?:and|both|options?|choices?)\b", " ", several)
        return Choice(letters=frozenset(re.findall(r"[A-Z]", marks.upper())))
    one = _ONE_LETTER.fullmatch(text)
    if one and (one["inside"] or "").islower() and one["text"].startswith("("):
        return None  # a product, (x)(x+1)
    if one is None or _GOES_ON.match(one["text"]) or _OTHER_LETTER.search(one["text"]):
        return None
    letter = (one["inside"] or one["bare"]).upper()
    return Choice(letters=frozenset(letter), text=one["text"].strip())


def _is_several(text: str) -> bool:
    """Letters with marks between them; if only spaces separate them, capitals."""
    if not _MARKED_LETTERS.fullmatch(text):
        return False
    return bool(re.search(r"[,;&)和与及]|\band\b", text)) or text.isupper()
