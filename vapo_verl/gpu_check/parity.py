"""Visual attention of real vLLM engines, and transformers' eager attention on the same tokens.

For the stage `engine`, and for the tests of the CPU engine.
"""

from __future__ import annotations

import itertools
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from vapo_verl.attention import engine_args, visual_attention
from vapo_verl.digits.model import model_dir

PATCH = 28
"""Pixels along an image token."""
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
WORDS = ("the red circle", "seven", "is left of", "a blue square", "What is the sum", "row", "9")
TOLERANCE = 1e-5
"""Of float32: rounding alone gives 3e-6 with this model's peaked attention."""
VISION_TOKENS = range(3, 8)
"""Forbidden in responses: the model's forward would take them for the start of an image."""

ENGINE = {
    "dtype": "float32",
    "block_size": 16,
    "enforce_eager": True,
    "max_model_len": 768,
    "max_num_seqs": 32,
    "kv_cache_memory_bytes": 2**28,
    "limit_mm_per_prompt": {"image": 3, "video": 0},
    "skip_mm_profiling": True,
    "seed": 0,
}
ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    # Engine and worker in the script's own process: starts in a third of the time, and timing does
    # not decide which requests meet in a batch.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
PROCESSES = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
"""vLLM's default: the engine and each worker in a process of its own."""
SAMPLING = {
    "max_tokens": 32,
    "temperature": 1.0,
    "ignore_eos": True,
    "logprobs": 0,
    "logit_bias": dict.fromkeys(VISION_TOKENS, -100.0),
}
ALL_LAYERS = engine_args("all", per_layer=True)
OfLayers = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    text: str
    images: tuple[Image.Image, ...]

    @classmethod
    def random(cls, rng: random.Random, num_images: int, longest_side: int = 8) -> Prompt:
        """Images of noise, each of its own size, with text before, between and after them.

        Args:
            longest_side: of an image, in image tokens.
        """
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(2, 16))) for _ in range(num_images + 1)]
        return cls(
            text=f"<|im_start|>user\n{IMAGE.join(texts)}<|im_end|>\n<|im_start|>assistant\n",
            images=tuple(_noise(rng, longest_side) for _ in range(num_images)),
        )

    def for_vllm(self) -> dict[str, Any]:
        images = {"multi_modal_data": {"image": list(self.images)}} if self.images else {}
        return {"prompt": self.text, **images}


def make_prompts(*numbers_of_images: int, seed: int = 0, longest_side: int = 8) -> list[Prompt]:
    rng = random.Random(seed)
    return [Prompt.random(rng, number, longest_side) for number in numbers_of_images]


def _noise(rng: random.Random, longest_side: int) -> Image.Image:
    height, width = (PATCH * rng.randint(2, longest_side) for _ in range(2))
    pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Requests that an engine gets at once."""

    prompts: Sequence[Prompt]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of `SAMPLING`, for all prompts."""
    sampling_of_each: Sequence[Mapping[str, Any]] | None = None
    """Overrides of both, for each prompt."""
    interrupt: str | None = None
    """AsyncLLM only: see engine_process.py."""
    sleep: int = 0
    """Level of a sleep of the engine before the batch; 0 for none. LLM only."""

    def for_script(self) -> dict[str, Any]:
        of_each = self.sampling_of_each or [{}] * len(self.prompts)
        return {
            "prompts": [x.for_vllm() for x in self.prompts],
            "params": [{**SAMPLING, **self.sampling, **x} for x in of_each],
            "interrupt": self.interrupt,
            "sleep": self.sleep,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One completion, with the inputs to run it through transformers."""

    prompt: Prompt
    prompt_ids: list[int]
    num_cached_tokens: int
    completion: Any
    """vLLM's `CompletionOutput`."""

    @property
    def values(self) -> Float[np.ndarray, "response ..."]:
        return visual_attention(self.completion)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRun:
    batches: list[list[Sample]]
    preemptions: int = 0
    graphs: int = 0
    """Graphs that torch.compile made."""


class Engines:
    """Starts engines, each in a process of its own; several at a time from several threads.

    Args:
        folder: where jobs, results and logs go.
        model: a folder of a Qwen-VL with the packaged tokenizer.
    """

    def __init__(self, folder: Path, model: Path | None = None) -> None:
        self._folder, self._model = folder, model or model_dir()
        self._count = itertools.count()

    def run(
        self,
        *batches: Batch,
        capture: Mapping[str, Any] = ALL_LAYERS,
        env: Mapping[str, str] | None = None,
        interface: str = "LLM",
        timeout_s: float = 600,
        **engine: Any,
    ) -> EngineRun:
        """Run the batches, one after the other, on an engine with `engine` overriding `ENGINE`.

        Raises:
            RuntimeError: the engine failed; the message has the end of its log.
            subprocess.TimeoutExpired: it took longer than `timeout_s`.
        """
        folder = self._folder / f"engine_{next(self._count)}"
        folder.mkdir(parents=True)
        job, result, log = (folder / name for name in ("job.pkl", "result.pkl", "log.txt"))
        of_job = {
            "engine": {"model": str(self._model), **ENGINE, **capture, **engine},
            "batches": [x.for_script() for x in batches],
            "interface": interface,
        }
        job.write_bytes(pickle.dumps(of_job))
        with log.open("w") as stream:
            process = subprocess.run(
                [sys.executable, "-m", "vapo_verl.gpu_check.engine_process", job, result],
                env={**os.environ, **ENV, **(env or {})},
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
            )
        if process.returncode:
            raise RuntimeError(f"the engine failed: {log.read_text()[-6000:]}")
        found = pickle.loads(result.read_bytes())
        return EngineRun(
            batches=[
                _samples(batch, outputs)
                for batch, outputs in zip(batches, found.pop("outputs"), strict=True)
            ],
            **found,
        )


def _samples(batch: Batch, outputs: list[Any]) -> list[Sample]:
    return [
        Sample(
            prompt=prompt,
            prompt_ids=output.prompt_token_ids,
            num_cached_tokens=output.num_cached_tokens,
            completion=completion,
        )
        for prompt, output in zip(batch.prompts, outputs, strict=True)
        for completion in output.outputs
    ]


class Eager:
    """A transformers model whose attention returns its weights; the packaged one if None."""

    def __init__(
        self, dtype: torch.dtype = torch.float32, model: Path | None = None, device: str = "cpu"
    ) -> None:
        folder = model or model_dir()
        torch.backends.cudnn.allow_tf32 = False  # on by default, in the vision tower's convolution
        self.model = (
            AutoModelForImageTextToText.from_pretrained(
                folder, dtype=dtype, attn_implementation="eager"
            )
            .eval()
            .to(device)
        )
        self.image_processor = AutoImageProcessor.from_pretrained(folder)

    @torch.no_grad()
    def visual_attention(
        self, sample: Sample, query_shift: int = 0, span_shift: int = 0
    ) -> Float[np.ndarray, "response layers"]:
        """Fraction of attention on the prompt's images, of the query that produced each token.

        If the model also has linear attention, the layers are those with softmax attention.

        Args:
            query_shift: look at queries this much later than the correct ones.
            span_shift: move the images' positions by this.
        """
        prompt_len, length = len(sample.prompt_ids), len(sample.completion.token_ids)
        ids = torch.tensor([[*sample.prompt_ids, *sample.completion.token_ids]])
        visual = ids[0] == self.model.config.image_token_id
        assert not visual[prompt_len:].any()
        pixels: dict[str, Tensor] = {}
        if sample.prompt.images:
            images = list(sample.prompt.images)
            pixels = dict(self.image_processor(images=images, return_tensors="pt"))
        device = self.model.device
        output = self.model(
            input_ids=ids.to(device),
            attention_mask=torch.ones_like(ids).to(device),
            mm_token_type_ids=visual.int()[None].to(device),
            **{name: value.to(device) for name, value in pixels.items()},
            output_attentions=True,
            use_cache=False,
        )
        first = prompt_len - 1 + query_shift
        queries = torch.stack([x[0, :, first : first + length] for x in output.attentions])
        queries = queries.float().cpu()
        fraction = queries[..., visual.roll(span_shift)].sum(-1).mean(1)  # [layers, response]
        return fraction.t().numpy()

    def errors(
        self, samples: Sequence[Sample], of_layers: OfLayers = np.asarray, **shifts: int
    ) -> Float[np.ndarray, " values"]:
        """Absolute error of every exported value of the samples.

        Args:
            of_layers: converts values of all layers [response, layers] to what the engine exports.
        """
        assert samples
        errors = []
        for sample in samples:
            expected = of_layers(self.visual_attention(sample, **shifts))
            assert sample.values.shape == expected.shape
            errors.append(np.abs(sample.values - expected).ravel())
        return np.concatenate(errors)
