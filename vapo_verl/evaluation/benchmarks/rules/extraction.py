r"""What all rules share: reading the answer out of a response, and options out of a question.

An answer is, in this order, the last `\boxed{...}` after the reasoning; the last `<answer>`; the
last statement such as "the answer is ..."; for questions with options, the option named in the
visible text; the value of the last sentence or the last equation. Reasoning in a `<think>` that
never closes is no answer, except for MathVerse. Nothing is guessed: if two options are named the
answer names two, and if none is named there is no answer. Lists of the options name none.

Naming an option follows `can_infer` of VLMEvalKit (vlmeval/utils/matching_util.py, read 2026-11):
one option letter among the tokens, near the end, else the one option whose text occurs in a short
answer. It differs where that function guesses: an article "A" is not a letter, and option texts are
compared at the borders of tokens, so that "5" does not occur in "15".
"""

import ast
import math
import re
import string
from collections.abc import Mapping, Sequence
from fractions import Fraction

from vapo_verl.data.errors import BadCell, shown
from vapo_verl.evaluation.benchmarks import BenchmarkRow
from vapo_verl.reward import THINK_END, THINK_START
from vapo_verl.reward.accuracy import answer_of, math_match
from vapo_verl.reward.answers import Choice, choice, normalised, text_key
from vapo_verl.reward.quantities import number, quantity

LETTERS = string.ascii_uppercase
_LAST_TOKENS = 5
"""A bare letter in a sentence counts only among this many last tokens: VLMEvalKit's limit."""
_SHORT_ANSWER = 60
"""Most characters of a one-line response that is an answer by itself."""
_CONCLUSION_LENGTH = 80
"""Most characters of the value of a last sentence."""
_END = 10_000
"""Characters at the end of a response that are searched for equations."""
_EMPHASIS = re.compile(r"\*\*|__|`")
_STATEMENT = re.compile(
    r"(?:\b(?:answer|(?:correct|right|best)\s+(?:option|choice|statement))s?\s*"
    r"(?:(?:is|are|would\s+be|must\s+be|should\s+be)\b\s*:?|[:：=])"
    r"|答案\s*(?:是|应?为|选|[:：])|正确的?选项\s*(?:是|应?为|[:：])|【答案】|(?:故|所以|因此|应)选)"
    r"(?!\s*(?:(?:not|correct|incorrect|wrong|consistent|reasonable|plausible|valid|verified"
    r"|confirmed|the\s+same)\b|正确|错误|合理|不))"
    r"\s*[:：]?\s*(?=([^\s:：].*))",
    re.I,
)
"""The value is only looked at, so that a further statement on the line is found."""
_OF_ANOTHER = re.compile(
    r"\b(?:other|others?['’]s?|wrong|incorrect|both|negative|alternative|this|that|not\s+the)\s+$"
    r"|\bif\b[^.!?]*$",
    re.I,
)
"""Before a statement that does not say the answer, if there is another one."""
_ANSWER_TAG = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.S | re.I)
_SENTENCE_END = re.compile(r"(?<!\b[A-Z])\.(?=\s|$)|(?<=[.!?])\s+(?=[A-Z][a-z])|。")
_MARKED_LETTER = re.compile(
    r"^[(\[]?([A-Z])[)\]]?\s*(?:[.:),;]|(?=\s(?:(?:for|with|is)\b|\()))"
    r"|(?<![\w\\])[(\[]([A-Z])[)\]]"
    r"|(?<![\w(])(?<!\d )([A-Z])\)"
    r"|[\"“]([A-Z])[.,]?[\"”]"
    r"|\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer)s?\s*(?:is|are)?\s*:?\s*[(\[]?([A-Z])(?![\w'’])"
    r"|(?:\b(?:or|and)|[,;/&])\s*([A-Z])[.:](?=\s)"
)
_REASON_WORDS = "because|since|as|which|where|while|but|not|instead|rather"
_REASON = re.compile(rf",?\s+(?:{_REASON_WORDS})\b")
_LETTER_RUN = re.compile(
    r"(?<![\w'])[A-Z](?:\s*(?:,\s*(?:and|or)|[,;/&]|\band|\bor)\s*[A-Z](?![\w'(]))+"
)
_NAMES = re.compile(
    r"(?:\\?(?:sin|cos|tan|cot|sec|csc) ?)?"
    r"\(?(?:[A-Z](?: ?[,:/] ?[A-Z])*|[a-z](?:(?:, ?|[:/])[a-z])*)\)?(?: ?\([A-Za-z]\))?"
)
"""Letters in front of `=` that name a value: `A`, `(A, B)`, `P(A)`."""
_SENTENCE = re.compile(r"(?:\b[^\W\d_]{2,}\b\W+){3}")
_TOKEN_BREAK = re.compile(r"[\s.()\[\],:;!?*#{}\"“”。]+")
_MATHS = re.compile(r"[=\\^+<>°∠△\d]")
_HEADER = re.compile(r"^[^\w\n]*(?:choices?|options?)[^\w\n]*:[^\S\n]*", re.I | re.M)
_BULLET = re.compile(r"^\s*[-*•+]\s+")
_OPTIONS_FOLLOW = re.compile(r"\b(?:options?|choices?)\b[^:]*:\s*$", re.I)
_OPTION_LINE = re.compile(r"\s*\(?([A-Z])\s*[).:、．：]\s*(.*)")
_VERB = r"\b(?:is|are|be|equals?(?!\s+to\b)|becomes|gives)\b"
_FILLERS = r"(?:(?:equal\s+to|approximately|about|exactly|therefore|thus|given\s+by)\s+)*"
_COMES_TO = re.compile(rf".*(?:{_VERB}|[=≈:])\s*{_FILLERS}(\S.*)")
_SAYS = re.compile(rf".*{_VERB}\s*{_FILLERS}(\S.*)", re.S)
_IS = re.compile(_VERB)
_IS_OR_EQUALS = re.compile(rf"{_VERB}|=")
_AND_OR = re.compile(r";|\b(?:and|or|but|while)\b")
_DIGIT = re.compile(r"\d")
_CLAUSE = re.compile(
    rf",?\s+(?:{_REASON_WORDS}|if|when|given|so|with)\b"
    r"|;|\s\((?=[A-Za-z])"
)
_WHICH_GIVES = r"which(?!\s+(?:is|are|was|were|equals|has|have)\b)"
_SO = re.compile(
    r"(?:[,;.]?\s+(?:and\s+)?(?:so(?!\s+that\b)|thus|hence|therefore)\b,?"
    rf"|,\s+{_WHICH_GIVES})\s+",
    re.I,
)
"""Before what follows from a value."""
_OF_EQUAL_RANK = re.compile(rf",?\s+(?:(?:but|while|so)\b|{_WHICH_GIVES})|;")
_BECAUSE = re.compile(r",?\s+(?:because|since|as|if|when|given|where)\b")
_NEXT_CLAUSE = re.compile(r",\s+[a-z]{2}")
_ENGLISH = re.compile(r"(?<![\\A-Za-z])(?!(?:and|or)\s)[A-Za-z]{2,}")
_THEREFORE = re.compile(r"^(?:so|thus|hence|therefore|then)\b,?\s*", re.I)
_SEGMENT = re.compile(r"\\\[(.+?)\\\]|\\\((.+?)\\\)|\$\$(.+?)\$\$|\$([^$]+)\$", re.S)
_HAS_VALUE = re.compile(r"\d|\\[a-z]|[√π∞=]")
_WORD = re.compile(r"[^\W\d_]{2}")
_APPROXIMATELY = re.compile(
    r"^(?:.*≈|~|∼|\\sim\b|(?:about|approximately|approx\.?|roughly|around|nearly|almost)\s)\s*",
    re.I,
)
_ONE_LETTER = re.compile(r"[(\[]?([A-Z])[)\]]?")
_OPTION_INLINE = re.compile(r"\(([A-Z])\)|(?<![\w(])([A-Z])[.:)](?=\s)")


def visible(prediction: str) -> str:
    """The text after the reasoning; empty if the reasoning never ends.

    A response without tags is visible in full. So is the text before a tag that opens late.
    """
    _, tag, rest = prediction.rpartition(THINK_END)
    if tag:
        return rest.strip()
    return rest.partition(THINK_START)[0].strip() if THINK_START in rest else rest.strip()


def stated_answer(prediction: str) -> str | None:
    r"""The content of the last box, else `<answer>`, else "answer is ..."; None without any.

    Such a statement ends with its sentence: "The answer is 3.5. So ..." says 3.5. One of another
    answer ("the other answer is", "if ... the answer is") counts only if there is no other.
    """
    if boxed := answer_of(prediction):
        return boxed
    text = _EMPHASIS.sub("", visible(prediction))
    if tagged := [tag.strip() for tag in _ANSWER_TAG.findall(text) if tag.strip()]:
        return tagged[-1]
    found = list(_STATEMENT.finditer(text))
    if not found:
        return None
    sayings = (each for each in reversed(found) if not _OF_ANOTHER.search(text, 0, each.start()))
    last = next(sayings, found[-1])
    maths = _SEGMENT.match(text, last.start(1))
    if maths and not text[maths.end() :].partition("\n")[0].strip(" .,;"):
        return next(filter(None, maths.groups())).strip() or None
    said = _SENTENCE_END.split(last[1], maxsplit=1)[0]
    return said.strip().strip("$\"'“”").strip() or None


def free_answer(prediction: str) -> str | None:
    """As :func:`stated_answer`; else a response of one short line, or its :func:`conclusion`.

    Of a sentence outside a box, the value that it gives: `7 cm` of `The length of AB is 7 cm.`
    """
    if boxed := answer_of(prediction):
        return boxed
    if stated := stated_answer(prediction):
        return _value_said(stated, is_stated=True)
    text = _EMPHASIS.sub("", visible(prediction))
    if text and "\n" not in text and len(text) <= _SHORT_ANSWER:
        sentence = text.strip("$").removesuffix(".").strip()
        return _value_said(sentence, is_stated=False) or None
    return conclusion(text)


def _value_said(text: str, *, is_stated: bool) -> str:
    """The one value that a sentence gives; else the text.

    That is what follows from another value (4 of "The sum is 12, so the mean is 4"), else the
    value before a reason (12 of "The area is 12 if the side is 3"). Two values of equal rank are
    none: `x = 3; x = 5`, "AB is 3 but BC is 4".

    Args:
        is_stated: the text is what "the answer is" says, so that a value in front is the answer.
    """
    text = _THEREFORE.sub("", text)
    is_sentence = not is_stated or bool(_IS.search(_CLAUSE.split(text, maxsplit=1)[0]))
    parts = _SO.split(text) if is_sentence else [text]
    part = next((part for part in reversed(parts) if _HAS_VALUE.search(part)), text)
    end = _CLAUSE.search(part)
    if end is None:
        return _value_of_clause(part) or text
    is_another = bool(_OF_EQUAL_RANK.match(part, end.start()))
    is_list = end[0] == ";" and not _IS.search(part, end.end())
    if is_another and (is_sentence or is_list) and _HAS_VALUE.search(part, end.end()):
        return text
    return _value_of_clause(part[: end.start()]) or text


def _value_of_clause(clause: str) -> str | None:
    clause = clause.removesuffix(".")
    found = _SAYS.fullmatch(clause)
    said = _bare_maths(found[1] if found else clause)
    if said is None or _says_twice(clause) or not _HAS_VALUE.search(said):
        return None
    return said if value_of(said) is not None or not _ENGLISH.search(said) else None


def _says_twice(clause: str) -> bool:
    """Whether a digit stands between two verbs."""
    verbs = list(_IS.finditer(clause))
    return len(verbs) > 1 and bool(_DIGIT.search(clause, verbs[0].end(), verbs[-1].start()))


def conclusion(text: str) -> str | None:
    """The value at the end of a text without a stated answer; None if it ends with words.

    That is a last line after one that ends with a colon; else the value that the last sentence
    gives (`... the distance is approximately 22.3 metres.`), before its reason; else the last side
    of an equation in the last paragraph.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    if len(lines) > 1 and lines[-2].endswith(":") and len(lines[-1]) <= _CONCLUSION_LENGTH:
        return _bare_maths(lines[-1])
    if _SEGMENT.fullmatch(lines[-1].removesuffix(".")):
        return last_equation(lines[-1]) or _bare_maths(lines[-1])
    sentence = [part for part in _SENTENCE_END.split(lines[-1]) if part.strip()][-1:]
    if sentence and (value := _value_before_reason(sentence[0])):
        return value
    found = _COMES_TO.fullmatch(sentence[0].strip()) if sentence else None
    if found and len(found[1]) <= _CONCLUSION_LENGTH and _HAS_VALUE.search(found[1]):
        return _bare_maths(found[1])
    return last_equation(text.strip().split("\n\n")[-1])


def _value_before_reason(sentence: str) -> str | None:
    """The value that a sentence gives, if it ends with the reason: `... is 60 because ...`."""
    reason = _BECAUSE.search(sentence)
    if reason is None or _NEXT_CLAUSE.search(sentence, reason.end()):
        return None
    clause = sentence[: reason.start()].strip()
    value = _value_of_clause(clause) if _IS.search(clause) else None
    return value if value and len(value) <= _CONCLUSION_LENGTH else None


def last_equation(text: str) -> str | None:
    r"""The last side of the last complete equation in maths: `4\sqrt{3}` of `\(S = 4\sqrt{3}\)`."""
    sides = [
        next(filter(None, groups)).rpartition("=")
        for groups in _SEGMENT.findall(text[-_END:])
        if any("=" in group for group in groups)
    ]
    last = sides[-1][2].strip().rstrip(".,;").strip() if sides else ""
    return last if 0 < len(last) <= _CONCLUSION_LENGTH else None


def _bare_maths(text: str) -> str | None:
    """The text without the delimiters of inline maths and without a closing full stop."""
    text = text.strip().removesuffix(".").strip()
    for start, end in ((r"\(", r"\)"), (r"\[", r"\]"), ("$", "$")):
        if (
            text.startswith(start)
            and text.endswith(end)
            and text.count(start) <= 1 + (start == end)
        ):
            text = text[len(start) : -len(end)].strip()
    return text or None


def chosen_letters(prediction: str, choices: Mapping[str, str]) -> str | None:
    """Letters of the options that a response chooses, sorted, each once: `B`, `AC`.

    Args:
        choices: letter -> text; empty if the options are only in the image, so that any letter
            may be one.

    Returns:
        None if no option is named. A letter that is not among the options is returned: it is an
        incorrect answer.
    """
    stated = stated_answer(prediction)
    if stated is not None and (letters := letters_of(stated, choices)):
        return letters
    if answer_of(prediction) is not None:
        return None  # the box is the answer, and it names no option
    all_lines = _EMPHASIS.sub("", visible(prediction)).splitlines()
    lines = _without_options(all_lines, choices)
    if not lines:
        return None
    if choice(lines[-1]) is not None or len(all_lines) == 1:
        return letters_of(lines[-1], choices)
    if letter := _option_line(lines[0], choices):
        return letter
    if letter := _bare_letter("\n".join(lines), choices):
        return letter
    value = conclusion("\n".join(lines))
    return letters_of(value, choices) if value else None


def _without_options(lines: Sequence[str], choices: Mapping[str, str]) -> list[str]:
    """The lines without those of a list of options, complete or cut off, and its header.

    Items are lines one below the other whose letters follow each other. An option that is repeated
    behind the list is an answer; so is one in the first line, above words about the next one.
    """
    bare = [_BULLET.sub("", line) for line in lines]
    runs: list[list[int]] = []
    for place, line in enumerate(bare):
        if item := _OPTION_LINE.fullmatch(line):
            above = runs[-1][-1] if runs else -1
            is_next = above >= 0 and ord(item[1]) == ord(bare[above].lstrip("( ")[0]) + 1
            if not is_next or any(map(str.strip, bare[above + 1 : place])):
                runs.append([])
            runs[-1].append(place)
    listed: set[int] = set()
    for run in runs:
        is_option = [_option_line(bare[place], choices) is not None for place in run]
        header = next((i for i in range(run[0] - 1, -1, -1) if lines[i].strip()), None)
        if len(run) == 1:
            is_cut_off = bare[run[0]].lstrip("( ")[0] == "A" and bool(choices) and not is_option[0]
            if not (is_cut_off and header is not None and _OPTIONS_FOLLOW.search(lines[header])):
                continue
        listed |= set(run[1:] if is_option[:2] == [True, False] and run[0] == 0 else run)
        if header is not None and lines[header].rstrip().endswith(":"):
            listed.add(header)
    return [line for place, line in enumerate(lines) if place not in listed]


def letters_of(answer: str, choices: Mapping[str, str]) -> str | None:
    r"""Letters of the options that a short answer names, as :func:`chosen_letters` returns them.

    In this order: the answer is one letter (`B`, `(b)`, `\text{B}`, `option B`); it is an option's
    text, also behind its letter; it has no letter before its value, and equals one option in value,
    also behind a name (`x = 12`); it has one letter in front, which decides whatever follows it
    (`B. 12`), or lists letters (`A, C`, `AC`); it marks letters (`(A) or (B)`, `option B, x = 2`);
    it contains one option's text; it has one bare letter. None if none of these holds.
    """
    picked = choice(answer)
    if picked and not picked.text and _is_one_of(picked, choices):
        return "".join(picked.letters)
    if same := _option_with_text(answer, choices) or _option_line(answer, choices):
        return same
    text = normalised(answer)
    head = _REASON.split(text)[0]
    said = answer if head == text else head
    if not _has_letter_first(head, choices) and (same := option_equal_to(said, choices)):
        return same
    if re.match(r"(?:it\s+is\s+)?not\b", head, re.I):
        return option_equal_to(answer, choices) or option_within(head, choices)
    if picked := picked or choice(head):
        letters = "".join(sorted(picked.letters))
        is_known = not choices or picked.letters <= choices.keys()
        if is_known or (len(letters) == 1 and head.isupper()):
            return letters
    if marked := _marked_letters(head, choices):
        return "".join(sorted(marked))
    found = option_within(head, choices) or _bare_letter(head, choices)
    return found or (option_equal_to(answer, choices) if head != text else None)


def _is_one_of(picked: Choice, choices: Mapping[str, str]) -> bool:
    return len(picked.letters) == 1 and (not choices or picked.letters <= choices.keys())


def _marked_letters(text: str, choices: Mapping[str, str]) -> set[str]:
    marked = {next(filter(None, groups)) for groups in _MARKED_LETTER.findall(text)}
    for run in _LETTER_RUN.findall(text):
        marked |= set(re.findall("[A-Z]", run))
    return {letter for letter in marked if letter in choices or not choices}


def _has_letter_first(text: str, choices: Mapping[str, str]) -> bool:
    """Whether a letter that names an option, and not the value, comes before an answer's value.

    Args:
        text: in normal form, without its reason.
    """
    front = text[: max(text.rfind("="), text.rfind("≈"), 0)].rstrip()
    if _NAMES.fullmatch(front) or _LETTER_RUN.match(front):
        return False
    picked = choice(front or text)
    if picked and _is_one_of(picked, choices):
        return True
    marks = (
        mark
        for mark in _MARKED_LETTER.finditer(front)
        if mark[5] or (mark.end() < len(front) and not front[mark.end() - 1].isalpha())
    )
    return any(next(filter(None, mark.groups())) in choices for mark in marks)


def option_equal_to(answer: str, choices: Mapping[str, str]) -> str | None:
    """The one option whose text equals the answer as text, else in value; None unless unique."""
    if not choices or not answer.strip():
        return None
    candidates = [answer, *([answer.rpartition("=")[2]] if "=" in answer else [])]
    for candidate in candidates:
        if same := _option_with_text(candidate, choices):
            return same
    if not re.search(r"\d|\\", answer) or _SENTENCE.search(normalised(answer)):
        return None
    for candidate in candidates:
        equal = [letter for letter, text in choices.items() if math_match(candidate, text)]
        if len(equal) == 1:
            return equal[0]
    return None


def _option_with_text(answer: str, choices: Mapping[str, str]) -> str | None:
    key = text_key(answer)
    same = [letter for letter, text in choices.items() if text_key(text) == key != ""]
    return same[0] if len(same) == 1 else None


def _option_line(line: str, choices: Mapping[str, str]) -> str | None:
    """The letter of a line that is one letter, or an option as listed: `B. Both A and C`."""
    option = _OPTION_LINE.fullmatch(normalised(line)) or _ONE_LETTER.fullmatch(normalised(line))
    if option is None or option[1] not in choices:
        return None
    text = option[2] if option.re is _OPTION_LINE else ""
    same = not text or text_key(text) == text_key(choices[option[1]])
    return option[1] if same else None


def option_within(answer: str, choices: Mapping[str, str]) -> str | None:
    """The one option whose text begins an answer (`Yes, ...`), or occurs in a short one, else None.

    Short means, as in VLMEvalKit, at most twice as long as all options together. Texts are compared
    in lower case at the borders of words and numbers. An option is not counted if its text is part
    of another option's text that occurs: "not blue" names the option "not blue", not "blue".
    """
    inside = normalised(answer).casefold()
    texts = {letter: normalised(text).casefold() for letter, text in choices.items()}
    first = [
        letter
        for letter, text in texts.items()
        if _WORD.search(text) and re.match(rf"{re.escape(text)}[,;:!]", inside)
    ]
    if len(first) == 1:
        return first[0]
    if len(answer) > 2 * sum(map(len, choices.values())):
        return None
    found = {letter: text for letter, text in texts.items() if text and _occurs(text, inside)}
    longest = [
        letter
        for letter, text in found.items()
        if not any(text != other and _occurs(text, other) for other in found.values())
    ]
    return longest[0] if len(longest) == 1 else None


def _occurs(text: str, inside: str) -> bool:
    return re.search(rf"(?<![\w.\-/{{^√]){re.escape(text)}(?!\w|[./]\d)", inside) is not None


def _bare_letter(text: str, choices: Mapping[str, str]) -> str | None:
    """The one option letter among the tokens of a text, if it is among the last ones."""
    tokens = [token for token in _TOKEN_BREAK.split(text) if token]
    found = {
        token: place
        for place, token in enumerate(tokens)
        if len(token) == 1
        and token in LETTERS
        and (token in choices or not choices)
        and not (token in "AI" and place + 1 < len(tokens) and tokens[place + 1].islower())
    }
    if len(found) != 1 or _MATHS.search(text.splitlines()[-1]):
        return None
    ((letter, place),) = found.items()
    return letter if place >= len(tokens) - _LAST_TOKENS else None


def parse_choices(question: str) -> dict[str, str]:
    """Options in the text of a question: letter -> text; empty if there are none.

    Options are the lines after the last "Choices:" or "Options:", else the last lines, each as
    `A. text`, `A: text`, `A) text` or `(A) text`; or one line `(A) text (B) text`. Letters begin
    at A and follow each other; there are at least two.
    """
    headers = list(_HEADER.finditer(question))
    block = question[headers[-1].end() :] if headers else question
    for found in (_option_lines(block), _inline_options(block)):
        if len(found) > 1:
            return found
    return {}


def _option_lines(block: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in block.splitlines():
        option = _OPTION_LINE.fullmatch(line)
        if option and option[1] == LETTERS[len(found)]:
            found[option[1]] = option[2].strip()
        elif found and line.strip() and not found[LETTERS[len(found) - 1]]:
            found[LETTERS[len(found) - 1]] = line.strip()  # the text is in the next line
        if len(found) == len(LETTERS):
            break
    return found


def _inline_options(block: str) -> dict[str, str]:
    marks: list[re.Match[str]] = []
    for mark in _OPTION_INLINE.finditer(block):
        if len(marks) < len(LETTERS) and (mark[1] or mark[2]) == LETTERS[len(marks)]:
            marks.append(mark)
    ends = [mark.start() for mark in marks[1:]] + [len(block)] * bool(marks)
    return {
        mark[1] or mark[2]: block[mark.end() : end].strip().rstrip(",;").strip()
        for mark, end in zip(marks, ends, strict=True)
    }


def lists_options(text: str, choices: Mapping[str, str]) -> bool:
    """Whether a text lists these options with their letters; only first lines are compared."""
    listed = parse_choices(text)
    firsts = {letter: option.strip().partition("\n")[0] for letter, option in choices.items()}
    return all(
        letter in listed and normalised(listed[letter]) == normalised(first)
        for letter, first in firsts.items()
    )


def choices_of(row: BenchmarkRow) -> Mapping[str, str]:
    """The row's own options, else those in the text of its question.

    Empty if the question's text does not list the ground truth's letter.
    """
    if row.choices:
        return row.choices
    found, picked = parse_choices(row.question), choice(row.answer)
    is_listed = picked is None or picked.text or picked.letters <= found.keys()
    return found if is_listed else {}


def true_letters(row: BenchmarkRow, choices: Mapping[str, str]) -> str:
    """Letters of the ground truth: a letter, several (`A, C`), or the text of an option.

    Raises:
        BadCell: it is none of these.
    """
    letters = letters_of(row.answer, choices)
    if letters is not None and choices and not all(letter in choices for letter in letters):
        letters = None
    if letters is None:
        options = f"the options are {', '.join(choices)}" if choices else "there are no options"
        found = f"{shown(row.answer)} is no option of index {row.index!r}: {options}"
        raise BadCell("answer", found, "write the letter of an option")
    return letters


def literal_list(text: str) -> list[str] | None:
    """The strings of a list literal (`['a', 'b']`), parsed, never evaluated; None if not a list."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return [str(item) for item in found] if isinstance(found, list) else None


def rounded(value: Fraction, decimals: int) -> float:
    """`round(float(value), decimals)`, as the authors of benchmarks round; nan beyond floats."""
    try:
        return round(float(value), decimals)
    except OverflowError:
        return math.nan


def value_of(text: str) -> Fraction | None:
    r"""The number in a plain answer without unit and name: `5 cm`, `x = 1/2`; None without one.

    An approximation is its number: `\approx 1.24`, `about 5 cm`, `0.2143...`.
    """
    text = _APPROXIMATELY.sub("", normalised(text)).rstrip(".… ")
    front, _, last = text.rpartition("=")
    for part in (text,) if _gives_another(front) else (text, last):
        measured = quantity(part)
        value = number(measured.value if measured else part)
        if value is not None:
            return value
    return None


def _gives_another(front: str) -> bool:
    """Whether a value comes before another one: the front of `x = 3 or x = 5`."""
    said = _IS_OR_EQUALS.search(front)
    return said is not None and _AND_OR.search(front, said.end()) is not None
