"""Checks of a row's cells other than claims: prompt, images, answer and source. Pure."""

import re

from vapo_verl.data.errors import BadCell, shown
from vapo_verl.data.images import image_source

IMAGE_PLACEHOLDER = "<image>"

_CHAT = "write the prompt as a list of {role: string, content: string}"
_ASK = "give the row a user turn with a question, or drop it"
_ONE_EACH = "write one <image> per entry of 'images', in their order"
_ANSWER = "set reward_model to {style: 'rule', ground_truth: the answer}, or drop the row"


def check_prompt(prompt: object) -> None:
    """The prompt is a chat of strings with at least one user turn that asks something.

    Raises:
        BadCell: not such a chat, or its user turns hold nothing but placeholders.
    """
    if not isinstance(prompt, list) or not all(_is_turn(turn) for turn in prompt):
        raise BadCell("prompt", f"the prompt is {shown(prompt)}", _CHAT)
    questions = [turn["content"] for turn in prompt if turn["role"] == "user"]
    if not any(text.replace(IMAGE_PLACEHOLDER, "").strip() for text in questions):
        raise BadCell("prompt", f"no question in {shown(prompt)}", _ASK)


def _is_turn(turn: object) -> bool:
    return isinstance(turn, dict) and all(
        isinstance(turn.get(field), str) for field in ("role", "content")
    )


def check_images_match(prompt: list[dict[str, str]], images: object) -> list[bytes | str]:
    """The sources of the row's images, after a count of them against the placeholders.

    Raises:
        BadCell: the counts differ, `images` is not a list, or an entry names no image; also a
            `<video>` or `<audio>` beside images, which veRL takes for a placeholder.
    """
    if images is not None and not isinstance(images, list):
        raise BadCell("images", f"the cell is {shown(images)}", "write a list of images")
    sources = [image_source(entry) for entry in images or []]
    text = "".join(turn["content"] for turn in prompt)
    num_placeholders = text.count(IMAGE_PLACEHOLDER)
    if num_placeholders != len(sources):
        found = f"{num_placeholders} <image> in the prompt, {len(sources)} images"
        raise BadCell("images", found, _ONE_EACH)
    if sources and (other := re.search("<video>|<audio>", text)):
        raise BadCell("prompt", f"{other[0]} in the prompt", "reword it: veRL reads a placeholder")
    return sources


def check_answer(reward_model: object) -> None:
    """Raises BadCell when `reward_model.ground_truth` is absent, null, blank or an empty list."""
    answer = reward_model.get("ground_truth") if isinstance(reward_model, dict) else None
    if answer is None or answer == [] or (isinstance(answer, str) and not answer.strip()):
        raise BadCell("reward_model", f"no answer in {shown(reward_model)}", _ANSWER)


def check_source(data_source: object, extra_info: object) -> None:
    """Raises BadCell when `data_source` is no name, or `extra_info` neither null nor a struct."""
    if not isinstance(data_source, str) or not data_source.strip():
        fix = "name the data set the row is from"
        raise BadCell("data_source", f"the source is {shown(data_source)}", fix)
    if extra_info is not None and not isinstance(extra_info, dict):
        fix = "write a struct, not a JSON string"
        raise BadCell("extra_info", f"the cell is {shown(extra_info)}", fix)
