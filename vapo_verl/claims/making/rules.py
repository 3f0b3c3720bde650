"""What a single claim must be: rules on its text, each a small function with a reason's name.

Text in quotes is what the image says, not how the claim says it: the rules on wording skip it.
"""

import re
from collections.abc import Callable

MIN_WORDS = 3
MAX_WORDS = 20
"""A.6 of arXiv 2509.25848."""

_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|‘[^’]*’|(?<!\w)'[^']*'(?!\w)|`[^`]*`")
_HEDGES = re.compile(
    r"\b(might|could|possibly|perhaps|maybe|probably|likely|presumably|apparently|seemingly"
    r"|seems?|suggests?|appears? (to|as)|looks? (like|as)|unclear|uncertain|roughly"
    r"|approximately|i (think|believe|guess)|cannot be (seen|determined)|not sure)\b",
    re.IGNORECASE,
)
_MAY = re.compile(r"\bmay\b")  # not the month, which has a capital
_TALK = re.compile(r"\b(the|this|that) (question|answer|claim|statement)\b|\?", re.IGNORECASE)
_VERB = (
    r"(is|are|was|were|has|have|had|shows?|contains?|reads?|says?|stands?|sits?|lies?|holds?"
    r"|wears?|faces?|equals?|does|do|can)"
)
# A participle counts right behind the conjunction only: "the building and the fence are high".
_TWO_CLAUSES = re.compile(
    rf"\b{_VERB}\b.*\b(and|but|while|whereas|although)( \w+ing\b|\b.*\b{_VERB}\b)|;|[.!] [A-Z]",
    re.IGNORECASE,
)
_COLORS = re.compile(
    r"\b(red|orange|yellow|green|blue|purple|violet|pink|brown|black|white|gr[ae]y|beige|cyan"
    r"|magenta|turquoise|teal|gold|silver|colou?r(s|ed)?)\b",
    re.IGNORECASE,
)
_UNIT = r"(degrees|units|inches|feet|\w*met(er|re)s|miles|\w*grams|dollars|\w*seconds)"
_COUNTS = re.compile(
    r"\b(two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\d+)\s+"
    rf"(?!{_VERB}\b|{_UNIT}\b)(\w+\s+)?\w+s\b"  # "the 7 stands" is a written digit, no count
    r"|\b(number of|count of|exactly (one|\d+)|only one)\b",
    re.IGNORECASE,
)
_MIN_ASCII_SHARE = 0.9


def text_problem(text: str, max_words: int = MAX_WORDS) -> str | None:
    """The reason to turn the claim down, or None for a good one."""
    if not has_good_length(text, max_words):
        return "length"
    plain = unquoted(text)
    return next((reason for reason, broken in WORDING.items() if broken(plain)), None)


def unquoted(text: str) -> str:
    """The claim with what it quotes blanked out."""
    return _QUOTED.sub('""', text)


def has_good_length(text: str, max_words: int = MAX_WORDS) -> bool:
    return MIN_WORDS <= len(text.split()) <= max_words


def is_hedged(text: str) -> bool:
    """ "seems to be", "probably": such a claim is neither true nor false."""
    return bool(_HEDGES.search(text) or _MAY.search(text))


def has_several_facts(text: str) -> bool:
    """Two clauses, each with a verb, or two sentences; "the cat and the dog sit" is one fact."""
    return bool(_TWO_CLAUSES.search(text))


def is_about_the_task(text: str) -> bool:
    """A question, or a statement about questions, answers or claims instead of the image."""
    return bool(_TALK.search(text))


def is_not_english(text: str) -> bool:
    """Mostly other letters than English has. Other languages in Latin letters are not noticed."""
    letters = [character for character in text if character.isalpha()]
    num_ascii = sum(character.isascii() for character in letters)
    return not letters or num_ascii < _MIN_ASCII_SHARE * len(letters)


def is_low_level(text: str) -> bool:
    """About a bare colour or count, which says little about understanding the image."""
    plain = unquoted(text)
    return bool(_COLORS.search(plain) or _COUNTS.search(plain))


WORDING: dict[str, Callable[[str], bool]] = {
    "hedge": is_hedged,
    "several_facts": has_several_facts,
    "about_the_task": is_about_the_task,
    "language": is_not_english,
}
"""Reason -> whether a claim, quotes blanked, breaks the rule."""
