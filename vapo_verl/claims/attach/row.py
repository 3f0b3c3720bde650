"""Which claims a row gets from the claims of its images."""

from collections.abc import Sequence

from vapo_verl.data.claims_column import Claim

_LOWERED = ("A", "All", "An", "At", "Both", "Each", "In", "It", "No", "On", "One", "The", "There")
"""First words that are written small after "In image 2,"; any other may be a name."""


def join_claims(
    claims_by_image: Sequence[tuple[Claim, ...] | None], *, single_image_only: bool = False
) -> tuple[Claim, ...]:
    """The claims of a row, in the order of its images; () if it is to have none.

    A claim was made from one image alone, so "the car is red" is ambiguous in a row of several:
    there every claim says which image it is about. Half-covered rows get none, because a policy
    would learn from which images it is asked about.

    Args:
        claims_by_image: the claims of each image; None for an image without claims.
        single_image_only: rows of several images get none.
    """
    if len(claims_by_image) > 1 and single_image_only:
        return ()
    known = [claims for claims in claims_by_image if claims]
    if len(known) < len(claims_by_image):
        return ()
    if len(known) == 1:
        return known[0]
    return tuple(
        Claim(about_image(number, claim.text), claim.label)
        for number, claims in enumerate(known, start=1)
        for claim in claims
    )


def about_image(number: int, text: str) -> str:
    """`text` as a statement about image `number` of a row, counted from 1.

    >>> about_image(2, "The car is red.")
    'In image 2, the car is red.'
    """
    first, *rest = text.split(maxsplit=1)
    return " ".join((f"In image {number},", first.lower() if first in _LOWERED else first, *rest))
