"""The audit page on which people judge claims, its images, and a summary of the answers.

The page is one file and makes no network requests.

A model wrote the claims, so the page treats them as data: JSON in a script element that no browser
runs, shown as text. The policy in its head allows only its own style and script, by their hash. So
even a mistake here would run nothing and send nothing.
"""

import base64
import hashlib
import heapq
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from string import Template

from PIL import Image

from vapo_verl.analysis.statistics import cohens_kappa, wilson_interval
from vapo_verl.claims.images import ImageItem, OnProblem, iter_images, raise_problem
from vapo_verl.claims.shards import ClaimRecord, read_records, unique_records
from vapo_verl.data.claims_column import Claim
from vapo_verl.data.errors import BadCell, FileError, shown
from vapo_verl.data.images import load_image
from vapo_verl.files import atomic_write
from vapo_verl.plots.html import inert_json, policy_hash

_SCRIPTS = ("answers.js", "view.js", "moves.js")
"""Concatenated in this order into one script."""
_PAGE_ID_CHARACTERS = 16
MAX_SIDE = 1280
"""Longer sides are scaled down to this many pixels: small print stays legible."""
_MAX_LOSSLESS_BYTES = 300_000
_JPEG_QUALITY = 88
_JPEG = b"\xff\xd8\xff"
"""How a JPEG file begins."""
QUESTIONS = {
    "visually_dependent": "visually dependent",
    "answerable": "answerable",
    "label_right": "label right",
}
ANSWERS = ("yes", "no", "unsure")
FORMAT, VERSION = "vapo-claims-audit", 1
_EXPORT_AGAIN = "export it again from the audit page"
ClaimKey = tuple[str, str, bool]
"""Image key, text and label: two people's answers are compared if these are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditImage:
    """An image of the sample with its claims."""

    key: str
    data: bytes
    """The stored image file."""
    source: str
    """Its location, for display."""
    model: str
    """The model that made the claims."""
    claims: tuple[Claim, ...]


def write_page(out: Path, images: Sequence[AuditImage], *, seed: int) -> None:
    """Write the page to `out`, complete or not at all.

    Raises:
        FileError: an image that cannot be decoded.
    """
    page = render_page(images, seed=seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render_page(images: Sequence[AuditImage], *, seed: int) -> str:
    style = _text("page.css")
    script = "\n".join(map(_text, _SCRIPTS))
    sample = {
        "page_id": page_id(images),
        "seed": seed,
        "images": [_image_data(image) for image in images],
    }
    return Template(_text("page.html")).substitute(
        policy=_policy(style, script), style=style, script=script, sample=inert_json(sample)
    )


def page_id(images: Sequence[AuditImage]) -> str:
    """Id of the sample: pages with the same images and claims share this id and their answers."""
    content = [[image.key, [claim.as_dict() for claim in image.claims]] for image in images]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:_PAGE_ID_CHARACTERS]


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; img-src data:; style-src {policy_hash(style)};"
        f" script-src {policy_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def _image_data(image: AuditImage) -> dict[str, object]:
    try:
        shown = page_image(image.data)
    except BadCell as bad:
        raise FileError(f"SOURCE: {image.source}: {bad.found}; {bad.fix}") from bad
    return {
        "key": image.key,
        "uri": shown.uri,
        "width": shown.width,
        "source": image.source,
        "model": image.model,
        "claims": [claim.as_dict() for claim in image.claims],
    }


def _text(name: str) -> str:
    return (files("vapo_verl.claims.audit") / name).read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageImage:
    """An image in a page."""

    uri: str
    """`data:image/...;base64,...`"""
    width: int
    """Pixels; so is `height`."""
    height: int


def page_image(data: bytes) -> PageImage:
    """`data` encoded again, at most MAX_SIDE pixels long, with the pixels that the model saw.

    Metadata is dropped: a browser would apply its orientation a second time.

    Raises:
        BadCell: not an image, or a damaged one.
    """
    try:
        pixels = load_image(data)
    except BadCell as bad:
        fix = "replace the image, or delete its claims"
        raise BadCell("images", f"cannot decode an image: {bad.found}", fix) from bad
    lossless = not data.startswith(_JPEG)
    pixels.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    encoded, kind = b"", "png"
    if lossless:
        encoded = _encoded(pixels, "PNG", optimize=True)
    if not encoded or len(encoded) > _MAX_LOSSLESS_BYTES:
        encoded, kind = _encoded(pixels, "JPEG", quality=_JPEG_QUALITY, subsampling=0), "jpeg"
    text = base64.b64encode(encoded).decode("ascii")
    uri = f"data:image/{kind};base64,{text}"
    return PageImage(uri=uri, width=pixels.width, height=pixels.height)


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def draw_sample(
    claims_dir: Path,
    source: Path,
    *,
    column: str = "images",
    image_root: Path = Path(),
    num_images: int,
    seed: int,
    on_problem: OnProblem = raise_problem,
) -> tuple[AuditImage, ...]:
    """`num_images` random images of `source` that have claims; all of them if there are fewer.

    The same seed draws the same images in the same order, whatever the order of shards and rows,
    and a larger sample includes the smaller one. Memory holds the sample and all image keys.

    Args:
        on_problem: called for an image of `source` that cannot be read; raises by default.

    Raises:
        FileError: no claims, no image of `source` with claims, or files that cannot be read.
    """
    known = {record.image_key for *_, record in unique_records(claims_dir) if record.claims}
    if not known:
        raise FileError(f"CLAIMS_DIR: {claims_dir} has no claims; give the --out of `generate`")
    images = iter_images(source, column, base=image_root, on_problem=on_problem)
    items = _first(known, images, num_images, seed)
    if not items:
        found = f"no image of {source} has claims in {claims_dir}"
        raise FileError(f"SOURCE: {found}; give the images that the claims were made from")
    wanted = {item.key for item in items}
    records = {r.image_key: r for r in read_records(claims_dir) if r.image_key in wanted}
    return tuple(_audit_image(item, records[item.key]) for item in items)


def rank(seed: int, image_key: str) -> int:
    """Random order of images: the sample consists of those with the lowest rank."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{image_key}".encode()).digest(), "big")


def _first(
    known: set[str], images: Iterable[ImageItem], num_images: int, seed: int
) -> list[ImageItem]:
    """The `num_images` images of lowest rank, lowest first; no more are held at a time."""
    heap: list[tuple[int, ImageItem]] = []  # a heap pops its minimum, so ranks are negated
    for item in images:
        if item.key not in known:
            continue
        entry = (-rank(seed, item.key), item)
        if len(heap) < num_images:
            heapq.heappush(heap, entry)
        elif entry[0] > heap[0][0]:
            heapq.heapreplace(heap, entry)
    return [item for _, item in sorted(heap, key=lambda entry: -entry[0])]


def _audit_image(item: ImageItem, record: ClaimRecord) -> AuditImage:
    return AuditImage(
        key=item.key,
        data=item.data,
        source=item.source,
        model=record.model,
        claims=record.claims,
    )


def summarise(paths: Sequence[Path]) -> str:
    """Text report: rates per person, of all together, and the agreement of each pair.

    Raises:
        FileError: a file is not an export.
    """
    everyone = [read_answers(path) for path in paths]
    lines = [line for person in everyone for line in _rates(person)]
    if len(everyone) > 1:
        lines += _rates(together(everyone))
    lines += [line for first, second in combinations(everyone, 2) for line in _pair(first, second)]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonAnswers:
    """One person's answers on claims; unanswered questions are left out."""

    person: str
    answers: Mapping[str, Mapping[ClaimKey, str]]
    """By question, then by claim: one of ANSWERS."""


def together(everyone: Sequence[PersonAnswers]) -> PersonAnswers:
    """One answer per claim and question: the most common one; "unsure" for a tie.

    Pooling all answers would count a claim more than once and make the intervals too narrow.
    """
    answers = {question: _majority(everyone, question) for question in QUESTIONS}
    return PersonAnswers(person=f"majority of {len(everyone)} people", answers=answers)


def _majority(everyone: Sequence[PersonAnswers], question: str) -> dict[ClaimKey, str]:
    votes: dict[ClaimKey, Counter[str]] = {}
    for person in everyone:
        for claim, answer in person.answers[question].items():
            votes.setdefault(claim, Counter())[answer] += 1
    return {claim: _winner(count) for claim, count in votes.items()}


def _winner(count: Counter[str]) -> str:
    (answer, most), *others = count.most_common(2)
    return "unsure" if others and others[0][1] == most else answer


def _rates(person: PersonAnswers) -> Iterator[str]:
    yield f"{person.person}:"
    for question, title in QUESTIONS.items():
        yield f"  {title:<19} {rate_line(person.answers[question])}"


def rate_line(answers: Mapping[ClaimKey, str]) -> str:
    """Rate of "yes" among all answers; "unsure" is in the denominator and is also counted."""
    count = Counter(answers.values())
    if not answers:
        return "no answers"
    low, high = wilson_interval(count["yes"], len(answers))
    unsure = f", {count['unsure']} unsure" if count["unsure"] else ""
    return (
        f"{count['yes'] / len(answers):6.1%}  (95 % interval {low:.1%} to {high:.1%};"
        f" {count['yes']} of {len(answers)}{unsure})"
    )


def _pair(first: PersonAnswers, second: PersonAnswers) -> Iterator[str]:
    yield f"{first.person} and {second.person}:"
    for question, title in QUESTIONS.items():
        mine, yours = first.answers[question], second.answers[question]
        pairs = [(mine[claim], yours[claim]) for claim in mine if claim in yours]
        yield f"  {title:<19} {_agreement_line(pairs)}"


def _agreement_line(pairs: Sequence[tuple[str, str]]) -> str:
    if not pairs:
        return "no claim that both judged"
    same = sum(a == b for a, b in pairs)
    kappa = cohens_kappa(pairs)
    shown = "undefined: both gave one answer throughout" if kappa is None else f"{kappa:.2f}"
    return f"{same / len(pairs):6.1%}  the same ({same} of {len(pairs)}), Cohen's kappa {shown}"


def read_answers(path: Path) -> PersonAnswers:
    """Raises FileError, naming the file and what is wrong, for anything but an export."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT or content["version"] != VERSION:
            raise ValueError(f"format {shown(content['format'])}, version {content['version']}")
        answers: dict[str, dict[ClaimKey, str]] = {question: {} for question in QUESTIONS}
        for given in content["verdicts"]:
            key = (str(given["image_key"]), str(given["claim"]), bool(given["label"]))
            for question in QUESTIONS.keys() & given.keys():
                answers[question][key] = _answer(given[question])
        person = str(content.get("auditor") or "").strip() or path.stem
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise FileError(f"--summary: {path} is no export ({reason}); {_EXPORT_AGAIN}") from error
    return PersonAnswers(person=person, answers=answers)


def _answer(value: object) -> str:
    if value not in ANSWERS:
        raise ValueError(f"an answer is {shown(value)}, want one of {ANSWERS}")
    return str(value)
