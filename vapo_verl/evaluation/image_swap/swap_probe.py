"""Continues responses with another image, from cuts along them."""

import math
import operator
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, pairwise
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from vapo_verl.data.images import ImageEntry, image_options, image_source
from vapo_verl.evaluation.image_swap import EXCHANGES, ImageSwapOptions
from vapo_verl.evaluation.probing.attention_summary import ratios
from vapo_verl.evaluation.probing.engine import Context, Engine, ShownImage, TopLogprobs
from vapo_verl.evaluation.probing.probe_options import ProbeOptions, QuestionOptions
from vapo_verl.evaluation.probing.respond import (
    ClaimProbe,
    Grade,
    Response,
    anchor_record,
    bound_question,
    cut_positions,
    cycle_claims,
    even_targets,
    grade,
    predict_claims,
    respond,
    row_key,
)
from vapo_verl.evaluation.probing.rows import Row, image_size
from vapo_verl.plots.panel import Numbers, numbers
from vapo_verl.run_folder import RunError

OWN = "own"
"""The original image; the others are `EXCHANGES`."""
CASES_READ_AT_ONCE = 8
"""A limit, as vLLM returns the likeliest tokens of a complete context, images included."""
T = TypeVar("T")
Exchanged = Mapping[str, tuple[ShownImage, ...]]
_SMALLEST = 1e-9
Sources = tuple[ImageEntry, ...]
"""Images of a row, encoded or as paths, with their options for size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A response, its cuts, its images and its claim probes."""

    response: Response
    donor: Row
    """The first row with the swapped images; its images are in the order shown."""
    same_size: bool
    images: Exchanged
    positions: tuple[int, ...]
    """Positions of the cuts, by rising target."""
    probes: tuple[ClaimProbe, ...]

    def before(self, position: int, images: str) -> Context:
        """The prompt with these images, and the response up to a cut."""
        prompt = Context(ids=self.response.prompt.ids, images=self.images[images])
        return prompt.then(self.response.completion.ids[:position])


class ImageSwap:
    """Probes batches of rows; the donor of every row is drawn once, over all rows."""

    def __init__(self, options: ProbeOptions, swap: ImageSwapOptions, rows: Sequence[Row]) -> None:
        """Raises RunError, see :func:`donor_rows`."""
        self._options, self._swap = options, swap
        self._donors = donor_rows(rows, options.seed)
        self._targets = even_targets(swap.num_cuts)

    def __call__(self, engine: Engine, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """A record for each row; the engine has to export attention."""
        cases = [self._case(engine, response) for response in respond(engine, rows, self._options)]
        grades = self._grade_continuations(engine, cases)
        claims = _predict(engine, cases, self._swap.asked)
        readings = [
            reading
            for first in range(0, len(cases), CASES_READ_AT_ONCE)
            for reading in _read(engine, cases[first : first + CASES_READ_AT_ONCE])
        ]
        return [
            self._record(case, grades[number], claims[number], readings[number])
            for number, case in enumerate(cases)
        ]

    def _case(self, engine: Engine, response: Response) -> Case:
        row = response.row
        donor = self._donors[row.number]
        own = [image.pixels for image in response.prompt.images]
        others = tuple(map(engine.image, donor.images))
        positions = cut_positions(response.reasoning, self._targets)
        rng = row_key(row, self._options).generator("claims")
        per_cut = self._swap.claims_per_cut
        distinct = list(dict.fromkeys(positions))
        return Case(
            response=response,
            donor=donor,
            same_size=[image.size for image in own] == [image.size for image in others],
            images={
                OWN: response.prompt.images,
                "swap": tuple(map(ShownImage, swapped(own, others))),
                "blank": tuple(map(ShownImage, map(blank, own))),
            },
            positions=tuple(positions),
            probes=tuple(cycle_claims(distinct, row.claims, per_cut, rng)) if per_cut else (),
        )

    def _grade_continuations(
        self, engine: Engine, cases: Sequence[Case]
    ) -> list[dict[tuple[str, int], Grade]]:
        """(exchange, position) -> grade of the response continued from there."""
        wanted = [
            (number, exchange, position)
            for number, case in enumerate(cases)
            for exchange in EXCHANGES
            for position in dict.fromkeys(case.positions)
        ]
        completions = engine.complete(
            [cases[number].before(position, exchange) for number, exchange, position in wanted],
            [max(self._options.max_tokens - position, 1) for _, _, position in wanted],
        )
        grades: list[dict[tuple[str, int], Grade]] = [{} for _ in cases]
        for (number, exchange, position), completion in zip(wanted, completions, strict=True):
            response = cases[number].response
            text = engine.decode((*response.completion.ids[:position], *completion.ids))
            grades[number][exchange, position] = grade(text, response.row)
        return grades

    def _record(
        self,
        case: Case,
        grades: Mapping[tuple[str, int], Grade],
        claims: Mapping[str, list[dict[str, Any]]],
        readings: Mapping[str, list[TopLogprobs]],
    ) -> dict[str, Any]:
        response = case.response
        cuts = list(zip(self._targets, case.positions, strict=True))
        return {
            **response.record(),
            "attention": ratios(response.completion.attention),
            "swapped_with": case.donor.number,
            "same_size": case.same_size,
            "claims": claims[OWN],
            "exchanges": {
                exchange: {
                    "cuts": [
                        {"target": target, "position": at, **asdict(grades[exchange, at])}
                        for target, at in cuts
                    ],
                    "claims": claims[exchange],
                    **_distances(response.completion.ids, readings[OWN], readings[exchange]),
                }
                for exchange in EXCHANGES
            },
        }


def _predict(
    engine: Engine, cases: Sequence[Case], asked: QuestionOptions
) -> list[dict[str, list[dict[str, Any]]]]:
    """Images -> predictions on the claims of each case."""
    kinds = (OWN, *EXCHANGES)
    pairs = [
        (case.before(probe.position, images), probe)
        for case in cases
        for images in kinds
        for probe in case.probes
    ]
    predictions = iter(predict_claims(engine, pairs, bound_question(engine, asked)))
    return [
        {
            images: [anchor_record(probe, next(predictions)) for probe in case.probes]
            for images in kinds
        }
        for case in cases
    ]


def _read(engine: Engine, cases: Sequence[Case]) -> list[dict[str, list[TopLogprobs]]]:
    """Images -> log probabilities at each token of the response, teacher-forced."""
    kinds = (OWN, *EXCHANGES)
    lengths = [case.response.num_tokens for case in cases for _ in kinds]
    contexts = [case.before(case.response.num_tokens, images) for case in cases for images in kinds]
    read = engine.read(contexts, lengths)
    firsts = range(0, len(read) + 1, len(kinds))
    return [dict(zip(kinds, read[a:b], strict=True)) for a, b in pairwise(firsts)]


def _distances(
    ids: Sequence[int], own: Sequence[TopLogprobs], other: Sequence[TopLogprobs]
) -> dict[str, Numbers]:
    pairs = list(zip(ids, own, other, strict=True))
    return {
        "kl": numbers(divergence(p, q) for _, p, q in pairs),
        "logprob_drop": numbers(p[token] - q[token] for token, p, q in pairs),
    }


def divergence(p: Mapping[int, float], q: Mapping[int, float]) -> float:
    """KL(p || q) in nats over the tokens in both lists, with all others as one outcome.

    Joining outcomes never increases a KL divergence. So this is a lower bound of the KL over the
    full vocabulary, and equal to it if the other tokens have no probability.

    Args:
        p: token id -> log probability, of the likeliest tokens and perhaps others.
        q: the same under the other condition.
    """
    common = p.keys() & q.keys()
    total = sum(math.exp(p[token]) * (p[token] - q[token]) for token in common)
    rest_p, rest_q = (
        max(1.0 - sum(math.exp(values[token]) for token in common), _SMALLEST) for values in (p, q)
    )
    return max(total + rest_p * math.log(rest_p / rest_q), 0.0)


def donor_rows(rows: Sequence[Row], seed: int) -> dict[int, Row]:
    """Number of a row -> its donor, the row whose images replace its own, in the order shown.

    Of several rows with the same images the first is the donor.

    Raises:
        RunError: all rows show the same images, or a row has no donor.
    """
    if len({row.images for row in rows}) < 2:
        raise RunError(
            f"DATA: the {len(rows)} drawn rows hold 1 different image, and image-swap takes that "
            "of another row: give a larger --num-rows, or data with several images"
        )
    donors = image_donors((row.images for row in rows), seed)
    if without := [row.number for row in rows if row.images not in donors]:
        raise RunError(
            f"DATA row {without[0]}: no other drawn row has images that differ from its own in "
            "every place; give a larger --num-rows, or leave the row out"
        )
    first = {
        _turned(row.images, turn): row for row in reversed(rows) for turn in range(len(row.images))
    } | {row.images: row for row in reversed(rows)}
    return {
        row.number: replace(first[donor], images=donor)
        for row in rows
        for donor in [donors[row.images]]
    }


def image_donors(images: Iterable[Sources], seed: int) -> dict[Sources, Sources]:
    """Images of a row -> the images that replace them: no image replaces itself.

    Rows with equal images (equal bytes or paths, and options) share a donor. Rows without images
    are left out. So are rows without a donor: in any order, every other row would keep one of their
    images in its place.

    If the donor of :func:`draw_donors` keeps an image in its place, others are tried: first those
    of the same sizes, in their order and then in another, then all others.
    """
    distinct = list(dict.fromkeys(each for each in images if each))
    if len(distinct) < 2:
        return {}
    sizes = [
        tuple((image_size(image), *image_options(image).items()) for image in each)
        for each in distinct
    ]
    names: dict[bytes | str, int] = {}  # images that differ only in size options are the same
    pictures = [
        tuple(names.setdefault(image_source(image), len(names)) for image in each)
        for each in distinct
    ]
    donors: dict[Sources, Sources] = {}
    for place, drawn in enumerate(draw_donors(sizes, seed)):
        for other, turn in _candidates(sizes, place, drawn):
            shown = cycle(_turned(pictures[other], turn))  # as `swapped` shows them
            if not any(map(operator.eq, pictures[place], shown)):
                donors[distinct[place]] = _turned(distinct[other], turn)
                break
    return donors


def _candidates(
    sizes: Sequence[tuple[Hashable, ...]], place: int, drawn: int
) -> Iterator[tuple[int, int]]:
    """Entries to swap with, and how many of their images move to the end, best first."""
    yield drawn, 0
    following = [number % len(sizes) for number in range(drawn, drawn + len(sizes))]
    for is_equal in (True, False):
        others = [
            other
            for other in following
            if other != place and (sizes[other] == sizes[place]) is is_equal
        ]
        yield from ((other, 0) for other in others)
        yield from ((other, turn) for other in others for turn in range(1, len(sizes[other])))


def _turned(images: tuple[T, ...], turn: int) -> tuple[T, ...]:
    return images[turn:] + images[:turn]


def draw_donors(sizes: Sequence[tuple[Hashable, ...]], seed: int) -> list[int]:
    """For each entry another one, with the same number and sizes of images where possible.

    Entries of equal sizes form a random cycle; an entry with unique sizes gets any other entry.

    Args:
        sizes: for each of at least two entries, the sizes of its images.

    Returns:
        For each entry, the index of its donor in `sizes`.
    """
    assert len(sizes) > 1
    rng = np.random.default_rng(seed)
    groups: dict[tuple[Hashable, ...], list[int]] = {}
    for index, of_row in enumerate(sizes):
        groups.setdefault(of_row, []).append(index)
    donors: dict[int, int] = {}
    for group in groups.values():
        circle = [group[i] for i in rng.permutation(len(group))]
        if len(circle) == 1:
            donors[circle[0]] = (circle[0] + int(rng.integers(1, len(sizes)))) % len(sizes)
        else:
            donors |= zip(circle, circle[1:] + circle[:1], strict=True)
    return [donors[index] for index in range(len(sizes))]


def swapped(
    images: Sequence[Image.Image], others: Sequence[Image.Image]
) -> tuple[Image.Image, ...]:
    """Donor images resized to match, cycled if there are fewer."""
    return tuple(
        others[number % len(others)].resize(image.size) for number, image in enumerate(images)
    )


def blank(image: Image.Image) -> Image.Image:
    """An image of one colour, the mean of `image`."""
    red, green, blue = np.asarray(image.convert("RGB"), dtype=float).mean(axis=(0, 1)).round()
    return Image.new("RGB", image.size, (int(red), int(green), int(blue)))
