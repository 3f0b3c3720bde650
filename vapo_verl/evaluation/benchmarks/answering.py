"""Asks a model every row of benchmarks. Each answer is stored at once and never asked for again.

A folder per benchmark holds `settings.json` and `rows.jsonl`, a line for each answer:

    row         int: rank of the answer in row order, then by sample
    index       int or string: the benchmark's own name of the row
    sample      int, from 0
    prediction  string: what the model answered, with a `<think>` that the chat template wrote
    truncated   bool: the token limit ended it
    num_tokens  int, as the engine or the endpoint counts them; 0 where an endpoint does not
"""

from __future__ import annotations

import asyncio
import base64
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image, ImageFilter

from vapo_verl.anchors.plan import SampleKey
from vapo_verl.claims.options import EndpointOptions, RetryOptions
from vapo_verl.claims.report import RunCounts
from vapo_verl.claims.requests.reply import FatalFault, ImageFailed
from vapo_verl.claims.requests.retry import Pacer, PatientAsker
from vapo_verl.console import progress_bar
from vapo_verl.data.cells import IMAGE_PLACEHOLDER
from vapo_verl.data.images import ImageEntry
from vapo_verl.evaluation.benchmarks import BenchmarkError, BenchmarkRow, Rule
from vapo_verl.evaluation.image_swap.swap_probe import Sources, blank, image_donors, swapped
from vapo_verl.evaluation.probing.engine import Context, Engine, ShownImage
from vapo_verl.evaluation.probing.journal import Journal, read_records
from vapo_verl.evaluation.probing.probe_options import EngineOptions
from vapo_verl.evaluation.probing.rows import Row, batches, open_image
from vapo_verl.reward.components import NUM_LAST_TOKENS, with_opening_tag
from vapo_verl.run_folder import RunError

BLUR = 0.1
"""Radius (standard deviation) of the Gaussian blur as a fraction of the shorter side."""
TOP_P = 1.0
"""top_p of sampled answers: all tokens may be drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn."""

    num_samples: int
    temperature: float
    """0 is greedy; above it, top_p is `TOP_P`."""
    max_tokens: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A benchmark to be asked in one way, and the folder of its answers."""

    name: str
    rows: Sequence[BenchmarkRow]
    rule: Rule
    folder: Path
    sampling: Sampling
    image: str
    """One of `IMAGES` of :mod:`vapo_verl.evaluation.benchmarks`."""
    suffix: str
    """Text after the question of a row that has no chat of its own."""
    settings: Mapping[str, Any]
    """Everything that the answers depend on."""

    @property
    def num_answers(self) -> int:
        return len(self.rows) * self.sampling.num_samples

    def question(self, row: BenchmarkRow) -> tuple[tuple[Mapping[str, str], ...], Sources]:
        """The row's chat and its images, in the order of their placeholders."""
        if row.messages:
            return row.messages, row.images
        prompt = self.rule.prompt(row)
        return ({"role": "user", "content": prompt.text + self.suffix},), prompt.images


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer to one row; the fields are described at the top of this file."""

    index: int | str
    sample: int
    prediction: str
    truncated: bool
    num_tokens: int


def read_answers(task: Task) -> list[Answer]:
    """The stored answers, in row order, then by sample."""
    return [
        Answer(**{name: value for name, value in record.items() if name != "row"})
        for record in read_records(task.folder)
    ]


def ask_engine(
    tasks: Sequence[Task],
    options: EngineOptions,
    batch: int,
) -> None:
    """Ask a checkpoint in vLLM until all tasks are finished; starts vLLM if answers are missing.

    Rows are asked in fixed batches, and each batch starts with empty caches. So a run that was
    killed and resumed gives the same answers as one that was not. A batch cut short by a kill is
    computed again; only its missing answers are stored.

    Args:
        batch: rows asked at once, with all of their samples.

    Raises:
        RunError: a folder was begun with other settings, or vLLM refuses a request.
    """
    with ExitStack() as opened:
        journals = [opened.enter_context(Journal(task.folder, task.settings)) for task in tasks]
        missing = [_unfinished_batches(*each, batch) for each in zip(tasks, journals, strict=True)]
        total = sum(task.num_answers for task in tasks)
        done = sum(len(journal.finished()) for journal in journals)
        print(f"{total:,} answers, {done:,} done before", flush=True)
        if not any(missing):
            return
        shown = [_ShownImages(task) for task in tasks]
        most_images = max(len(task.question(row)[1]) for task in tasks for row in task.rows)
        engine = opened.enter_context(Engine(options, images_per_prompt=most_images))
        progress = opened.enter_context(progress_bar(total, unit="answer", done=done))
        for task, journal, images, some in zip(tasks, journals, shown, missing, strict=True):
            for rows in some:
                finished = journal.finished()
                engine.forget()
                try:
                    answers = _answer_batch(engine, task, rows, images)
                except RunError as error:
                    first, last = rows[0][1].index, rows[-1][1].index
                    raise RunError(
                        f"{task.name}, one of the rows {first!r} to {last!r}: {error}. A prompt "
                        "that is too long needs a higher --max-model-len or a lower --max-pixels"
                    ) from error
                for number, answer in answers:
                    if number not in finished:
                        journal.append({"row": number, **asdict(answer)})
                        progress.update()


NumberedRow = tuple[int, BenchmarkRow]
"""A row and its rank in the benchmark."""


def _unfinished_batches(task: Task, journal: Journal, batch: int) -> list[Sequence[NumberedRow]]:
    samples, finished = task.sampling.num_samples, journal.finished()
    return [
        rows
        for rows in batches(list(enumerate(task.rows)), batch)
        if any(place * samples + k not in finished for place, _ in rows for k in range(samples))
    ]


def _answer_batch(
    engine: Engine, task: Task, rows: Sequence[NumberedRow], images: _ShownImages
) -> list[tuple[int, Answer]]:
    sampling = task.sampling
    asked = [(place, row, k) for place, row in rows for k in range(sampling.num_samples)]
    prompts = {place: _context(engine, task, place, row, images) for place, row in rows}
    ends = {place: engine.decode(prompts[place].ids[-NUM_LAST_TOKENS:]) for place in prompts}
    completions = engine.complete(
        [prompts[place] for place, _, _ in asked],
        sampling.max_tokens,
        temperature=sampling.temperature,
        seeds=[_seed(task, row, sample) for _, row, sample in asked],
    )
    return [
        (
            place * sampling.num_samples + sample,
            Answer(
                index=row.index,
                sample=sample,
                prediction=with_opening_tag(engine.decode(completion.ids), ends[place]),
                truncated=completion.finish == "length",
                num_tokens=len(completion.ids),
            ),
        )
        for (place, row, sample), completion in zip(asked, completions, strict=True)
    ]


def _context(
    engine: Engine, task: Task, place: int, row: BenchmarkRow, images: _ShownImages
) -> Context:
    messages, _ = task.question(row)
    text_only = Row(
        number=place,
        data_source=task.name,
        index=None,
        messages=messages,
        images=(),
        ground_truth=row.answer,
        style=row.style,
        claims=(),
    )
    shown = map(ShownImage, images.of(place, engine.image))
    return Context(ids=engine.prompt(text_only).ids, images=tuple(shown))


def _seed(task: Task, row: BenchmarkRow, sample: int) -> int:
    key = SampleKey(
        seed=task.sampling.seed, step=0, prompt_uid=f"{task.name}/{row.index}", sample=sample
    )
    return key.sampling_seed()


class _ShownImages:
    """The images that each row of a task is asked with."""

    def __init__(self, task: Task) -> None:
        """Raises BenchmarkError when images are to be swapped and a row has no donor."""
        self._kind = task.image
        self._own = [task.question(row)[1] for row in task.rows]
        self._donors = _donors(task, self._own) if task.image == "swapped" else {}

    def of(self, place: int, load: Callable[[ImageEntry], Image.Image]) -> tuple[Image.Image, ...]:
        """Images of the row at this place in the benchmark, decoded by `load`."""
        sources = self._own[place]
        images = tuple(map(load, sources))
        if self._kind == "blank":
            return tuple(map(blank, images))
        if self._kind == "blurred":
            return tuple(map(blurred, images))
        if self._kind == "swapped" and images:
            return swapped(images, tuple(map(load, self._donors[sources])))
        return images


def blurred(image: Image.Image) -> Image.Image:
    """The image with a Gaussian blur of `BLUR` times its shorter side."""
    return image.convert("RGB").filter(ImageFilter.GaussianBlur(BLUR * min(image.size)))


def _donors(task: Task, images: Sequence[Sources]) -> dict[Sources, Sources]:
    """:func:`image_donors` of all rows with images."""
    num_different = len({each for each in images if each})
    if num_different < 2:
        raise BenchmarkError(
            f"--image swapped: the rows of {task.name} hold {num_different} different images; "
            "choose blank or blurred, or a benchmark with several images"
        )
    donors = image_donors(images, task.sampling.seed)
    for row, own in zip(task.rows, images, strict=True):
        if own and own not in donors:
            raise BenchmarkError(
                f"--image swapped: no row of {task.name} has images that differ from those of "
                f"index {row.index!r} in every place; choose blank or blurred, or leave it out"
            )
    return donors


def ask_endpoint(tasks: Sequence[Task], options: EndpointOptions, max_concurrency: int) -> None:
    """Ask an OpenAI-compatible endpoint, one request per answer, until all tasks are finished.

    Raises:
        RunError: a folder was begun with other settings; the endpoint refuses every request; or
            some answers failed (the same command asks for them again).
    """
    top_p = TOP_P if tasks[0].sampling.temperature else None
    with ExitStack() as opened:
        journals = [opened.enter_context(Journal(task.folder, task.settings)) for task in tasks]
        missing = [
            (task, journal, place, sample)
            for task, journal in zip(tasks, journals, strict=True)
            for finished in [journal.finished()]
            for place in range(len(task.rows))
            for sample in range(task.sampling.num_samples)
            if place * task.sampling.num_samples + sample not in finished
        ]
        total = sum(task.num_answers for task in tasks)
        print(f"{total:,} answers, {total - len(missing):,} done before", flush=True)
        if not missing:
            return
        named = {task.name: (task, _ShownImages(task)) for task in tasks}
        failed: Counter[str] = Counter()

        @lru_cache(max_concurrency)  # at most this many rows, with all samples, are in progress
        def messages_of(name: str, place: int) -> list[dict[str, object]]:
            task, images = named[name]
            chat, _ = task.question(task.rows[place])
            return _endpoint_messages(chat, images.of(place, open_image))

        with progress_bar(total, unit="answer", done=total - len(missing)) as progress:

            async def ask(asker: PatientAsker, place_in_line: int) -> None:
                task, journal, place, sample = missing[place_in_line]
                row = task.rows[place]
                messages = messages_of(task.name, place)
                try:
                    reply = await asker.ask(messages, Random(_seed(task, row, sample)))
                except ImageFailed as fault:
                    failed[str(fault)] += 1
                    return
                answer = Answer(
                    index=row.index,
                    sample=sample,
                    prediction=reply.choices[0].text,
                    truncated=reply.choices[0].cut_off,
                    num_tokens=reply.usage.completion_tokens,
                )
                number = place * task.sampling.num_samples + sample
                journal.append({"row": number, **asdict(answer)})
                progress.update()

            ask_concurrently(options, len(missing), max_concurrency, ask, top_p=top_p)
    if failed:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in failed.most_common(3))
        raise RunError(
            f"{failed.total()} of {total} answers failed ({reasons}). The others are stored: give "
            "the same command again to ask for the missing ones"
        )


def ask_concurrently(
    options: EndpointOptions,
    num_requests: int,
    max_concurrency: int,
    ask: Callable[[PatientAsker, int], Any],
    top_p: float | None = None,
) -> None:
    """Run `ask(asker, number)` for every number, at most `max_concurrency` at once.

    Args:
        top_p: as :class:`vapo_verl.claims.requests.endpoint.Endpoint` takes it.

    Raises:
        RunError: the endpoint refuses every request; the message says what to fix.
    """
    from vapo_verl.claims.requests.endpoint import Endpoint  # aiohttp is slow to import

    async def run() -> None:
        async with Endpoint(options, top_p=top_p) as endpoint:
            asker = PatientAsker(endpoint, Pacer(), RetryOptions(), RunCounts())
            numbers = iter(range(num_requests))

            async def work() -> None:
                for number in numbers:
                    await ask(asker, number)

            workers = [asyncio.ensure_future(work()) for _ in range(max_concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    try:
        asyncio.run(run())
    except FatalFault as fault:
        raise RunError(f"{options.base_url}: {fault}") from fault


def _endpoint_messages(
    messages: Sequence[Mapping[str, str]], images: Sequence[Image.Image]
) -> list[dict[str, object]]:
    """The chat in the format of an endpoint: placeholders become PNG images."""
    left = iter(images)
    chat: list[dict[str, object]] = []
    for turn in messages:
        first, *others = turn["content"].split(IMAGE_PLACEHOLDER)
        parts: list[dict[str, object]] = [{"type": "text", "text": first}] if first else []
        for text in others:
            parts.append({"type": "image_url", "image_url": {"url": _png_uri(next(left))}})
            parts += [{"type": "text", "text": text}] if text else []
        chat.append({"role": turn["role"], "content": parts})
    return chat


def _png_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
