"""Find control tokens in the text of a row, or encode them as plain text.

A tokenizer turns `<|im_end|>` in a question into the token that ends a turn, and `<|image_pad|>`
into a place for an image's features. So a row with such text is refused, or, on request, its text
is escaped: :meth:`ControlTokens.hide` puts :data:`ESCAPE` into each of these words. A tokenizer
prepared by :func:`read_escapes` drops that character again after it has looked for its own tokens,
so that its ids are those of the plain text.

The tags of the response format, `<think>` and `</think>`, may be control tokens too. In
Qwen3-VL-Instruct they are added tokens that were never trained: the policy does not write them even
if asked, and the format reward stays 0. :func:`tags_as_text` finds such tags, and prompts spell
them out in the same way. The policy then answers in the same plain tokens.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vapo_verl.reward import THINK_END, THINK_START

ESCAPE = "\ufdd0"
"""A noncharacter of Unicode, which no text may hold."""
RESPONSE_TAGS = (THINK_START, THINK_END)
"""Single tokens in some tokenizers, but part of every prompt's instructions."""
MEDIA_WORDS = ("<video>", "<audio>")
"""Text that veRL reads as the place of a video or a recording, in rows with images."""
PROCESSOR_WORDS = ("<|placeholder|>",)
"""Text that Qwen-VL's processors read as the place of an image's features."""
VISION_TOKENS = (
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>"),
)
"""Tokens that stand for images and videos, or for places in them."""
QWEN_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *VISION_TOKENS,
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
"""Added tokens of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, for checks without a tokenizer."""
WITHOUT_TEXT = ("vapo.data.control_tokens=text", "refuse")
WITHOUT_TAGS = ("vapo.data.plain_think_tokens", "false")
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
"""transformers 5 saves the first; older releases the second."""
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)


class ControlTokens:
    """The words that a tokenizer, a processor or veRL reads as more than text.

    Args:
        tokens: of a tokenizer; those that veRL and the processor look for are added. None: only
            the tags.
        tags: from :func:`tags_as_text`; other tags of the response format are not included.
    """

    def __init__(
        self, tokens: Iterable[str] | None = QWEN_TOKENS, tags: Collection[str] = ()
    ) -> None:
        words = {*tags}
        if tokens is not None:
            words |= {*tokens, *MEDIA_WORDS, *PROCESSOR_WORDS} - {*RESPONSE_TAGS}
        self.words: tuple[str, ...] = tuple(
            sorted((word for word in words if len(word) > 1), key=lambda word: (-len(word), word))
        )
        """Longest first."""

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.words)))

    def find(self, text: str, *, allowed: Sequence[str] = ()) -> str | None:
        """The first control token in the text, other than those allowed; None for plain text."""
        found = (match[0] for match in self._pattern.finditer(text))
        return next((word for word in found if word not in allowed), None)

    def hide(self, text: str) -> str:
        """The text with an escape after the first character of each control token."""
        num_hidden = 1
        while num_hidden:  # again, as an occurrence may have overlapped another
            text, num_hidden = self._pattern.subn(lambda m: m[0][0] + ESCAPE + m[0][1:], text)
        return text


def tokenizer_tokens(folder: Path) -> tuple[str, ...] | None:
    """Added and special tokens in the files of a tokenizer; None where the folder has no such file.

    White space is left out: some tokenizers have tokens for runs of it.
    """
    found: set[str] = set()
    files = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    for file in files:
        found.update(_tokens_in(file.name, json.loads(file.read_text(encoding="utf-8"))))
    return tuple(sorted(token for token in found if token.strip())) if files else None


def added_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Added and special tokens of a loaded tokenizer."""
    return tuple(sorted(token for token in tokenizer.get_added_vocab() if token.strip()))


def model_folder(name: str) -> Path | None:
    """The folder of a model: a path, or a hub name that is in the local cache."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    hub = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"
    hub = Path(os.environ.get("HF_HUB_CACHE", hub))
    cached = hub / f"models--{name.replace('/', '--')}"
    main = cached / "refs" / "main"
    revision = main.read_text().strip() if main.is_file() else "*"
    found = sorted(cached.glob(f"snapshots/{revision}/config.json"))
    return found[-1].parent if found else None


def image_processor_settings(folder: Path | None) -> Iterator[dict[str, Any]]:
    """What each file of a processor in a model's folder states of images; nothing without one."""
    for name in PROCESSOR_FILES:
        if folder is not None and (folder / name).is_file():
            stated = json.loads((folder / name).read_text(encoding="utf-8"))
            yield stated.get("image_processor", stated)


def load_processor(folder: Path | str, chat_template: str | None = None) -> Any:
    """A model's processor, with the chat template that a run of it renders prompts with.

    As in veRL's HFModelConfig, a processor without a template takes that of its tokenizer, which
    may be in `tokenizer_config.json` only.

    Args:
        chat_template: `actor_rollout_ref.model.custom_chat_template`; None is the model's own.
    """
    from transformers import AutoProcessor  # imports torch

    processor = AutoProcessor.from_pretrained(folder)
    if chat_template is not None:
        processor.chat_template = chat_template
    elif not processor.chat_template:
        processor.chat_template = getattr(processor, "tokenizer", processor).chat_template
    return processor


def tags_as_text(tokenizer: Any, setting: str | bool, processor: Any = None) -> tuple[str, ...]:
    """The tags of the response format that prompts spell out (`vapo.data.plain_think_tokens`).

    Only tags that are added tokens count: others are plain text already. With ``auto`` they are
    spelled out if the chat template does not write them. A model that was trained to think in
    these tokens has such a template, like Qwen3-VL-Thinking; Qwen3-VL-Instruct does not.

    Args:
        setting: a value of `config.PLAIN_THINK_TOKENS`; Hydra turns two of them into a bool.
        processor: if it has a chat template, prompts are rendered with it, and not with the
            tokenizer's.
    """
    setting = str(setting).lower()
    if setting == "false" or tokenizer is None:
        return ()
    added = {*added_tokens(tokenizer)}
    templates = (getattr(each, "chat_template", None) for each in (processor, tokenizer))
    template = str(next(filter(None, templates), ""))
    written = any(tag in template for tag in RESPONSE_TAGS)
    if setting == "auto" and written:
        return ()
    return tuple(tag for tag in RESPONSE_TAGS if tag in added)


def text_words(
    tokenizer: Any, *, control_tokens: str, plain_think_tokens: str | bool, processor: Any = None
) -> ControlTokens | None:
    """The words that prompts and claims of a run encode as plain text; None for none.

    Prepares the tokenizers by :func:`read_escapes`.

    Args:
        control_tokens, plain_think_tokens: the settings under `vapo.data`.

    Raises:
        ValueError: the tokenizer cannot be prepared.
    """
    tags = tags_as_text(tokenizer, plain_think_tokens, processor)
    all_controls = control_tokens == "text"
    if not (all_controls or tags):
        return None
    for each in (tokenizer, getattr(processor, "tokenizer", None)):
        read_escapes(each, WITHOUT_TEXT if all_controls else WITHOUT_TAGS)
    return ControlTokens(added_tokens(tokenizer) if all_controls else None, tags)


def tag_token_ids(tokenizer: Any, tags: Iterable[str]) -> list[int]:
    """Ids of the tokens that :func:`tags_as_text` replaces by text; no response may hold them."""
    added = tokenizer.get_added_vocab()
    return sorted(added[tag] for tag in tags)


def spell_saved_tags(folder: Path, setting: str | bool) -> tuple[str, ...]:
    """Remove the tokens of :func:`tags_as_text` from a saved tokenizer; returns the tags.

    Programs that load the folder then spell the tags in prompts, as in training. Nothing is removed
    if another added token follows one of them, because the next token would take its id.
    """
    if not (folder / "tokenizer.json").is_file():
        return ()
    processor = load_processor(folder)
    tags = tags_as_text(processor.tokenizer, setting, processor)
    if not tags:
        return ()
    added = processor.tokenizer.get_added_vocab()
    saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    last = max((number for token, number in added.items() if token not in tags), default=-1)
    if any(tag not in saved["model"]["vocab"] and added[tag] < last for tag in tags):
        return ()
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            saved = _without_tokens(json.loads((folder / name).read_text(encoding="utf-8")), tags)
            text = json.dumps(saved, ensure_ascii=False, indent=2)
            (folder / name).write_text(text + "\n", encoding="utf-8")
    return tags


def _without_tokens(stated: dict[str, Any], tokens: Collection[str]) -> dict[str, Any]:
    """One of a tokenizer's files without some added tokens."""

    def is_kept(value: Any) -> bool:
        return (value.get("content") if isinstance(value, dict) else value) not in tokens

    kept = {name: value for name, value in stated.items() if name not in tokens}
    for name in ("added_tokens", "additional_special_tokens", "extra_special_tokens"):
        if isinstance(kept.get(name), list):
            kept[name] = [value for value in kept[name] if is_kept(value)]
    if "added_tokens_decoder" in kept:
        decoder = kept["added_tokens_decoder"].items()
        kept["added_tokens_decoder"] = {number: v for number, v in decoder if is_kept(v)}
    return kept


def read_escapes(tokenizer: Any, instead: tuple[str, str] = WITHOUT_TEXT) -> None:
    """Make a fast tokenizer drop :data:`ESCAPE`, after it has looked for its added tokens.

    Further calls change nothing.

    Args:
        instead: the setting that asks for it and the value that does not, for messages.

    Raises:
        ValueError: the tokenizer is a slow one, or looks for some of its tokens later.
    """
    from tokenizers import normalizers

    if tokenizer is None:
        return
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            f"{instead[0]}: {type(tokenizer).__name__} has no fast tokenizer; set {instead[1]}"
        )
    late = [str(t) for t in backend.get_added_tokens_decoder().values() if t.normalized]
    if late:
        raise ValueError(
            f"{instead[0]}: the tokenizer looks for {', '.join(late[:3])} in "
            f"normalized text, where nothing is escaped any more; set {instead[1]}"
        )
    if backend.encode(f"a{ESCAPE}b", add_special_tokens=False).ids == (
        backend.encode("ab", add_special_tokens=False).ids
    ):
        return
    old = backend.normalizer
    leave_out = normalizers.Replace(ESCAPE, "")
    backend.normalizer = leave_out if old is None else normalizers.Sequence([leave_out, old])


def vision_token_ids(tokenizer: Any) -> list[int]:
    """Ids of :data:`VISION_TOKENS`, which no sampled response may hold."""
    added = tokenizer.get_added_vocab()
    return sorted(added[token] for token in VISION_TOKENS if token in added)


def _tokens_in(name: str, stated: Mapping[str, Any]) -> Iterable[str]:
    """The tokens that one of a tokenizer's files states."""
    if name == "added_tokens.json":  # token -> id
        yield from stated
        return
    if name == "tokenizer.json":
        yield from (token["content"] for token in stated.get("added_tokens", ()))
        return
    yield from (token["content"] for token in stated.get("added_tokens_decoder", {}).values())
    for key, value in stated.items():
        if key in ("additional_special_tokens", "extra_special_tokens"):
            several = value.values() if isinstance(value, dict) else value or ()
        else:
            several = (value,) if key.endswith("_token") else ()
        for token in several:
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str):
                yield content
