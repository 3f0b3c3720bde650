"""The `claims` column: true or false statements about a row's image."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vapo_verl.data.errors import BadCell, shown

CLAIMS_PER_IMAGE = 20
"""Claims made per training image (A.6 of arXiv 2509.25848): half of them true."""
BALANCED_SHARE = (0.3, 0.7)
"""Fractions of true claims that count as balanced; outside, always saying yes (or no) pays."""

RUN_IMPORTER = "run `python -m vapo_verl.data import-vapo-thinker`"
_WRITE_STRUCTS = "write claims as a list of {text: string, label: bool}"
_DROP = "drop the claim, its label with it, or correct its text"
_DROP_BLANK = "drop the claim, its label with it"
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]"
)
"""Control characters except tab and line breaks, unpaired surrogates, changes of direction."""
_INVISIBLE = str.maketrans("", "", "\u00ad\u200b\u2060\ufeff")
"""Soft hyphen, zero-width space, word joiner, byte-order mark."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement about the image that its pixels show to be true or false."""

    text: str
    label: bool
    """True when the image supports the claim."""

    def as_dict(self) -> dict[str, str | bool]:
        """The claim as it is stored in a parquet row."""
        return {"text": self.text, "label": self.label}


def normalized_text(text: str) -> str:
    """A claim as it is stored: Unicode NFC, white space as single spaces, nothing invisible."""
    return " ".join(unicodedata.normalize("NFC", text.translate(_INVISIBLE)).split())


def control_character(text: str) -> str | None:
    """The first character that a claim may not contain, as `U+0007`; None if there is none.

    These are control characters other than tab and line breaks, unpaired surrogates, which no
    file can hold, and characters that change the direction of writing.
    """
    found = _CONTROL.search(text)
    return f"U+{ord(found[0]):04X}" if found else None


def read_claims(cell: object) -> tuple[Claim, ...]:
    """The claims of one row, from parquet, pandas, numpy or pyarrow; null and empty give ().

    Raises:
        BadCell: not a list of {text, label}, a blank text, one with a control character, or a label
            that is not a bool.
    """
    cell = _plain(cell)
    if cell is None:
        return ()
    if not isinstance(cell, list | tuple):
        raise BadCell("claims", f"the cell is {shown(cell)}, want a list", _WRITE_STRUCTS)
    return tuple(_read_claim(_plain(claim)) for claim in cell)


def _read_claim(claim: object) -> Claim:
    if not isinstance(claim, dict) or not {"text", "label"} <= claim.keys():
        raise BadCell("claims", f"a claim is {shown(claim)}, want text and label", _WRITE_STRUCTS)
    text, label = _plain(claim["text"]), _plain(claim["label"])
    if not isinstance(text, str):
        raise BadCell("claims", f"text is {shown(text)}, want a string", _WRITE_STRUCTS)
    if not normalized_text(text):
        raise BadCell("claims", f"text is blank: {shown(text)}", _DROP_BLANK)
    if character := control_character(text):
        raise BadCell(
            "claims", f"text {shown(text)} holds the control character {character}", _DROP
        )
    if not isinstance(label, bool):
        fix = RUN_IMPORTER if isinstance(label, str) else _WRITE_STRUCTS
        raise BadCell("claims", f"label is {shown(label)}, want true/false", fix)
    return Claim(text, label)


def _plain(value: object) -> object:
    """numpy arrays and scalars, and pyarrow scalars, as plain Python; without importing either."""
    for method in ("as_py", "tolist"):
        if hasattr(value, method):
            return getattr(value, method)()
    return value


def share_true(claims: Sequence[Claim]) -> float:
    """Fraction of true claims, 0..1; 0.5 if there are no claims."""
    return sum(claim.label for claim in claims) / len(claims) if claims else 0.5


def is_balanced(claims: Sequence[Claim]) -> bool:
    low, high = BALANCED_SHARE
    return low <= share_true(claims) <= high


def has_duplicates(claims: Sequence[Claim]) -> bool:
    """Whether two claims are equal except for case and white space."""
    return any(count > 1 for count in Counter(_key(claim) for claim in claims).values())


def has_contradiction(claims: Sequence[Claim]) -> bool:
    """Whether one text is labelled both true and false: one of the two is a labelling error."""
    return len({_key(claim) for claim in claims}) < len({(_key(c), c.label) for c in claims})


def _key(claim: Claim) -> str:
    return " ".join(claim.text.split()).casefold()
