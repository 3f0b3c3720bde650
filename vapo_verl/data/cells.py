"""Checks of the cells of a row, the same for every command: each raises BadCell. Pure.

:func:`row_problems` runs all of them. `data check`, the checks before a run, the doctor, and the
commands that read rows call it, so that all of them report a problem in the same words.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from vapo_verl.config import ANSWER_STYLES, JUDGE_STYLE
from vapo_verl.data.claims_column import read_claims
from vapo_verl.data.control_tokens import ESCAPE, MEDIA_WORDS, ControlTokens
from vapo_verl.data.errors import BadCell, shown
from vapo_verl.data.images import image_options, image_source
from vapo_verl.reward.accuracy import number_text
from vapo_verl.reward.accuracy import truths_of as accepted_truths

IMAGE_PLACEHOLDER = "<image>"
ROLES = ("system", "user", "assistant")
STYLES = (None, "rule", *ANSWER_STYLES, JUDGE_STYLE)
"""Values of `reward_model.style`; `rule` and null leave it to `vapo.reward.answer_style`."""

_CHAT = "write the prompt as a list of {role: string, content: string}"
_ASK = "give the row a user turn with a question, or drop it"
_ASK_LAST = "end the prompt with the user's turn, or drop the row"
_ROLE = f"use the roles {', '.join(ROLES)}"
_ONE_EACH = "write one <image> per entry of 'images', in their order"
_ANSWER = "set reward_model to {style: 'rule', ground_truth: the answer}, or drop the row"
_TEXT_ANSWER = "write the answer as text, a number, or a list of texts any of which is correct"
_STYLE = f"write one of {', '.join(repr(s) for s in STYLES if s)}, or leave it null"
_JUDGE = "name the judge's model in vapo.reward.judge.model, or write another style"
_INDEX = "write extra_info.index as a whole number, or leave the field out of all rows"
_PLAIN_TEXT = "reword it, or encode it as the characters it is made of: control_tokens=text"
_IMAGES_ONLY = (
    "anchors are asked about images only: leave such rows out, or set vapo.anchors.num_anchors=0"
)
_FEWER = "raise the limit, or drop the row"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRules:
    """Requirements of a run or a command on rows, beyond the row format."""

    controls: ControlTokens = field(default_factory=ControlTokens)
    refuse_controls: bool = True
    """False: such text is encoded as plain text (`vapo.data.control_tokens=text`)."""
    max_images: int | None = None
    """Images per row that the engine accepts; None is no limit."""
    max_images_key: str = "--max-images"
    """Where the limit is set, for the message."""
    limits: Mapping[str, int | None] = field(default_factory=dict)
    """`min_pixels` and `max_pixels` to which images are resized."""
    resize_factor: int = 28
    """Pixels of an image token's side: 28 in Qwen2.5-VL, 32 in Qwen3-VL."""
    refuse_judged: bool = False
    """Refuse rows of style `judge`: no judge is configured, nor a function in place of it."""
    refuse_media: bool = False
    """Refuse videos and recordings: anchors are asked about images only."""
    video_column: str = "videos"
    audio_column: str = "audios"


_DEFAULT_RULES = RowRules()


def row_problems(row: Mapping[str, Any], rules: RowRules) -> list[BadCell]:
    """All problems of a row except those of its image files, at most one per check."""
    problems = []
    for check in CHECKS:
        try:
            check(row, rules)
        except BadCell as problem:
            problems.append(problem)
    return problems


def check_row(row: Mapping[str, Any], rules: RowRules) -> None:
    """Raises the first BadCell of :func:`row_problems`."""
    for check in CHECKS:
        check(row, rules)


def check_prompt(prompt: object) -> None:
    """The prompt is a chat of strings, asks something, and ends with the user's turn.

    Raises:
        BadCell: not such a chat, another role, or user turns with nothing but placeholders.
    """
    if not _is_chat(prompt):
        raise BadCell("prompt", f"the prompt is {shown(prompt)}", _CHAT)
    assert isinstance(prompt, list)
    if unknown := [turn["role"] for turn in prompt if turn["role"] not in ROLES]:
        raise BadCell("prompt", f"a turn has the role {shown(unknown[0])}", _ROLE)
    questions = [turn["content"] for turn in prompt if turn["role"] == "user"]
    if not any(text.replace(IMAGE_PLACEHOLDER, "").strip() for text in questions):
        raise BadCell("prompt", f"no question in {shown(prompt)}", _ASK)
    if prompt[-1]["role"] != "user":
        found = f"the last turn is the {prompt[-1]['role']}'s"
        raise BadCell("prompt", found, _ASK_LAST)


def check_images_match(prompt: list[dict[str, str]], images: object) -> list[bytes | str]:
    """The sources of the row's images; their number must be that of the placeholders.

    Raises:
        BadCell: the counts differ, `images` is not a list, an entry names no image, or its options
            cannot be used.
    """
    if images is not None and not isinstance(images, list):
        raise BadCell("images", f"the cell is {shown(images)}", "write a list of images")
    sources = [image_source(entry) for entry in images or []]
    for entry in images or []:
        image_options(entry)
    text = "".join(turn["content"] for turn in prompt)
    num_placeholders = text.count(IMAGE_PLACEHOLDER)
    if num_placeholders != len(sources):
        found = f"{num_placeholders} <image> in the prompt, {len(sources)} images"
        raise BadCell("images", found, _ONE_EACH)
    return sources


def chat_parts(content: str) -> list[dict[str, str]]:
    """A turn's text and images in order, as the chat template of a VL model expects them."""
    parts: list[dict[str, str]] = []
    for number, text in enumerate(content.split(IMAGE_PLACEHOLDER)):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": text}] if text else []
    return parts


def truths_of(reward_model: object) -> tuple[str, ...]:
    """The answers of a row as text: any of them is correct.

    Args:
        reward_model: its `ground_truth` is a text, a number, or a list of those.

    Raises:
        BadCell: absent, empty, blank without the LaTeX around it (`$$`, `\\boxed{}`), not a
            finite number, or of another type: a struct, bytes, a bool, a date.
    """
    answer: Any = reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None
    if hasattr(answer, "tolist"):  # an array or a number of numpy
        answer = answer.tolist()
    if answer is None or answer == [] or (isinstance(answer, str) and not answer.strip()):
        raise BadCell("reward_model", f"no answer in {shown(reward_model)}", _ANSWER)
    members = list(answer) if isinstance(answer, list | tuple) else [answer]
    for member in members:
        if isinstance(member, bool) or not isinstance(member, str | int | float | Decimal):
            raise BadCell("reward_model", f"an answer is {shown(member)}", _TEXT_ANSWER)
        if not isinstance(member, str) and not math.isfinite(member):
            raise BadCell("reward_model", f"an answer is {member}, no number", _TEXT_ANSWER)
        try:
            accepted_truths(number_text(member))
        except ValueError as error:
            found = f"an answer is {shown(member)}, which nothing can match"
            raise BadCell("reward_model", found, _TEXT_ANSWER) from error
    return tuple(map(number_text, members))


def check_answer(reward_model: object) -> None:
    """Raises BadCell when there is no answer that can be compared, or an unknown style."""
    truths_of(reward_model)
    assert isinstance(reward_model, Mapping)
    style = reward_model.get("style")
    if not isinstance(style, str | None) or style not in STYLES:
        raise BadCell("reward_model", f"the style is {shown(style)}", _STYLE)


def check_source(data_source: object) -> None:
    """Raises BadCell when `data_source` is no name."""
    if not isinstance(data_source, str) or not data_source.strip():
        fix = "name the data set the row is from"
        raise BadCell("data_source", f"the source is {shown(data_source)}", fix)


def check_extra_info(extra_info: object) -> None:
    """Raises BadCell unless it is null or a struct, and its `index` a whole number."""
    if extra_info is None:
        return
    if not isinstance(extra_info, dict):
        fix = "write a struct, not a JSON string"
        raise BadCell("extra_info", f"the cell is {shown(extra_info)}", fix)
    if "index" in extra_info and not _is_whole(extra_info["index"]):
        raise BadCell("extra_info", f"index is {shown(extra_info['index'])}", _INDEX)


def check_claim_text(text: str, rules: RowRules = _DEFAULT_RULES) -> None:
    """Raises BadCell for a claim that a row may not hold: with `<image>` or a control token."""
    _refuse_controls("claims", text, rules, ())


def _check_prompt(row: Mapping[str, Any], rules: RowRules) -> None:
    prompt = row["prompt"]
    check_prompt(prompt)
    media = [row.get(column) for column in (rules.video_column, rules.audio_column)]
    allowed = [word for word, cell in zip(MEDIA_WORDS, media, strict=True) if cell]
    for turn in prompt:
        _refuse_controls("prompt", turn["content"], rules, allowed)


def _check_media(row: Mapping[str, Any], rules: RowRules) -> None:
    for column, word in zip((rules.video_column, rules.audio_column), MEDIA_WORDS, strict=True):
        cell = row.get(column)
        if not cell:
            continue
        if rules.refuse_media:
            raise BadCell(column, f"the row has {column}", _IMAGES_ONLY)
        if not isinstance(cell, list):
            raise BadCell(column, f"the cell is {shown(cell)}", "write a list")
        text = "".join(turn["content"] for turn in row["prompt"]) if _is_chat(row["prompt"]) else ""
        if text.count(word) != len(cell):
            found = f"{text.count(word)} {word} in the prompt, {len(cell)} {column}"
            raise BadCell(column, found, f"write one {word} for each")


def _check_images(row: Mapping[str, Any], rules: RowRules) -> None:
    try:
        check_prompt(row["prompt"])
    except BadCell:
        return  # `_check_prompt` refuses it, and there are no placeholders to count
    num_images = len(check_images_match(row["prompt"], row["images"]))
    if rules.max_images is not None and num_images > rules.max_images:
        found = f"{num_images} images, {rules.max_images_key}={rules.max_images}"
        raise BadCell("images", found, _FEWER)


def _check_answer(row: Mapping[str, Any], rules: RowRules) -> None:
    check_answer(row["reward_model"])
    if rules.refuse_judged and row["reward_model"].get("style") == JUDGE_STYLE:
        raise BadCell(
            "reward_model", f"the style is {JUDGE_STYLE!r}, and there is no judge", _JUDGE
        )


def _check_source(row: Mapping[str, Any], rules: RowRules) -> None:
    check_source(row["data_source"])


def _check_extra_info(row: Mapping[str, Any], rules: RowRules) -> None:
    check_extra_info(row["extra_info"])


def _check_claims(row: Mapping[str, Any], rules: RowRules) -> None:
    for claim in read_claims(row["claims"]):
        check_claim_text(claim.text, rules)


CHECKS: tuple[Callable[[Mapping[str, Any], RowRules], None], ...] = (
    _check_prompt,
    _check_images,
    _check_media,
    _check_answer,
    _check_source,
    _check_extra_info,
    _check_claims,
)


def _refuse_controls(column: str, text: str, rules: RowRules, allowed: Sequence[str]) -> None:
    if ESCAPE in text:
        fix = "take the character out: no text may hold a noncharacter"
        raise BadCell(column, f"U+{ord(ESCAPE):04X} in {shown(text)}", fix)
    if column == "claims" and IMAGE_PLACEHOLDER in text:
        raise BadCell(column, f"{IMAGE_PLACEHOLDER} in {shown(text)}", "reword the claim")
    if rules.refuse_controls and (word := rules.controls.find(text, allowed=allowed)):
        where = text.index(word)
        around = text[max(where - 20, 0) : where + len(word) + 20]
        raise BadCell(column, f"{word} in the {column}: {around!r}", _PLAIN_TEXT)


def _is_chat(prompt: object) -> bool:
    return isinstance(prompt, list) and all(
        isinstance(turn, dict)
        and all(isinstance(turn.get(field), str) for field in ("role", "content"))
        for turn in prompt
    )


def _is_whole(value: object) -> bool:
    if isinstance(value, float):
        return value.is_integer() and abs(value) < 2**53
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
