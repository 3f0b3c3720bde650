"""Fixed batches: a run that is cut off anywhere and resumed stores what an uncut one stores."""

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from vapo_verl.evaluation.benchmarks import BenchmarkError, BenchmarkRow, answering
from vapo_verl.evaluation.benchmarks.answering import Sampling, Task, read_answers
from vapo_verl.evaluation.benchmarks.rules import find_rule
from vapo_verl.evaluation.probing.engine import Completion, Context
from vapo_verl.evaluation.probing.journal import ROWS_FILE, Journal
from vapo_verl.evaluation.probing.probe_options import EngineOptions
from vapo_verl.run_folder import RunError

NUM_ROWS, NUM_SAMPLES, BATCH = 5, 2, 2
CUT = Completion(ids=tuple(b"so 7"), finish="length")


class BatchEngine(contextlib.nullcontext):
    """Stands in for vLLM: an answer depends on all that was asked since the caches were emptied,
    as rounding does there."""

    started = 0

    def __init__(self, options, **_):
        super().__init__(self)
        type(self).started += 1
        self.asked = []

    def forget(self):
        self.asked = []

    def prompt(self, row):
        return Context(ids=tuple(row.messages[0]["content"].encode()), images=())

    def image(self, source):
        raise AssertionError("there are no images")

    def complete(self, contexts, max_tokens, *, temperature, seeds):
        self.asked += [(context.ids, seed) for context, seed in zip(contexts, seeds, strict=True)]
        return [
            Completion(ids=(number, hash(tuple(self.asked)) % 10**6, seed), finish="stop")
            for number, seed in enumerate(seeds)
        ]

    def decode(self, ids):
        return " ".join(map(str, ids))


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setattr(answering, "Engine", BatchEngine)
    monkeypatch.setattr(BatchEngine, "started", 0)
    return BatchEngine


def tasks(out: Path, image: str = "own") -> list[Task]:
    sampling = Sampling(num_samples=NUM_SAMPLES, temperature=1.0, max_tokens=9, seed=3)
    rows = [
        BenchmarkRow(number=n, index=n, question=f"What is {n}?", answer=str(n))
        for n in range(NUM_ROWS)
    ]
    return [
        Task(
            name=name,
            rows=rows,
            rule=find_rule("free-form"),
            folder=out / name,
            sampling=sampling,
            image=image,
            suffix="",
            settings={"DATA": name},
        )
        for name in ("first", "second")
    ]


def ask(out: Path) -> list[bytes]:
    answering.ask_engine(tasks(out), EngineOptions(model="m"), BATCH)
    return [(out / name / ROWS_FILE).read_bytes() for name in ("first", "second")]


@pytest.mark.parametrize("num_stored", range(2 * NUM_ROWS * NUM_SAMPLES))
def test_a_cut_run_resumes_to_the_same_bytes(num_stored, tmp_path, monkeypatch):
    whole = ask(tmp_path / "whole")
    append, left = Journal.append, iter(range(num_stored))

    def cut(journal, record):
        if next(left, None) is None:
            raise KeyboardInterrupt
        append(journal, record)

    monkeypatch.setattr(Journal, "append", cut)
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path / "cut")
    monkeypatch.setattr(Journal, "append", append)
    assert ask(tmp_path / "cut") == whole
    answers = read_answers(tasks(tmp_path / "cut")[1])
    assert [(each.index, each.sample) for each in answers] == [
        (index, sample) for index in range(NUM_ROWS) for sample in range(NUM_SAMPLES)
    ]


def test_a_finished_run_starts_no_engine(tmp_path, engine):
    ask(tmp_path)
    assert engine.started == 1
    ask(tmp_path)
    assert engine.started == 1


def test_samples_differ_in_their_seeds_and_repeat(tmp_path):
    ask(tmp_path / "a")
    ask(tmp_path / "b")
    first = read_answers(tasks(tmp_path / "a")[0])
    assert first == read_answers(tasks(tmp_path / "b")[0])
    seeds = [each.prediction.split()[-1] for each in first]
    assert len(set(seeds)) == NUM_ROWS * NUM_SAMPLES


def test_an_answer_begins_with_the_tag_that_the_template_wrote(tmp_path, engine, monkeypatch):
    monkeypatch.setattr(engine, "decode", lambda _, ids: bytes(ids).decode())
    monkeypatch.setattr(engine, "complete", lambda _, contexts, *__, **___: [CUT for _ in contexts])
    task = tasks(tmp_path)[0]
    for question, expected in (("Why?\n<think>\n", "<think>so 7"), ("Why?\n", "so 7")):
        rows = [replace(row, question=question) for row in task.rows]
        asked = replace(task, rows=rows, folder=tmp_path / expected)
        answering.ask_engine([asked], EngineOptions(model="m"), BATCH)
        assert {each.prediction for each in read_answers(asked)} == {expected}


def test_a_request_that_vllm_refuses_names_benchmark_and_rows(tmp_path, engine, monkeypatch):
    def refuse(*_, **__):
        raise RunError("vLLM refused a request: 9000 tokens")

    monkeypatch.setattr(engine, "complete", refuse)
    with pytest.raises(RunError, match=r"first, one of the rows 0 to 1: vLLM refused .* 9000"):
        ask(tmp_path)


def test_swapped_images_are_found_before_the_engine_starts(tmp_path, engine):
    with pytest.raises(BenchmarkError, match="the rows of first hold 0 different images"):
        answering.ask_engine(tasks(tmp_path, "swapped"), EngineOptions(model="m"), BATCH)
    assert engine.started == 0


def test_a_row_that_no_images_can_be_swapped_for_is_named(tmp_path, engine):
    [task, _] = tasks(tmp_path, "swapped")
    red, blue = (str(tmp_path / f"{colour}.png") for colour in ("red", "blue"))
    for path in (red, blue):
        Image.new("RGB", (28, 28), Path(path).stem).save(path)
    rows = [
        BenchmarkRow(number=n, index=5 + n, question="Which?", answer="1", images=images)
        for n, images in enumerate([(red,), (red, blue)])
    ]
    with pytest.raises(BenchmarkError, match=r"no row of first has images that differ .* index 6"):
        answering.ask_engine([replace(task, rows=rows)], EngineOptions(model="m"), BATCH)
    assert engine.started == 0


def test_an_endpoint_gets_a_row_for_all_its_samples_from_one_opening(tmp_path, monkeypatch):
    opened, asked = [], []

    class Asker:
        async def ask(self, messages, rng):
            await asyncio.sleep(0)
            asked.append((messages[0]["content"][0]["image_url"]["url"], rng.random()))
            choice = SimpleNamespace(text="5", cut_off=False)
            return SimpleNamespace(choices=[choice], usage=SimpleNamespace(completion_tokens=1))

    def open_image(source):
        opened.append(source)
        return Image.new("RGB", (28, 28), source)

    def all_at_once(options, num_requests, max_concurrency, ask, *, top_p):
        assert top_p == 1

        async def run():
            await asyncio.gather(*(ask(Asker(), number) for number in range(num_requests)))

        asyncio.run(run())

    monkeypatch.setattr(answering, "open_image", open_image)
    monkeypatch.setattr(answering, "ask_concurrently", all_at_once)
    colours = ("red", "green", "blue")
    rows = [
        BenchmarkRow(number=n, index=n, question="Which?", answer="5", images=(colour,))
        for n, colour in enumerate(colours)
    ]
    [task, _] = tasks(tmp_path)
    answering.ask_endpoint([replace(task, rows=rows)], None, max_concurrency=2)
    assert opened == list(colours)
    assert len({url for url, _ in asked}) == 3
    assert len({draw for _, draw in asked}) == len(asked) == 3 * NUM_SAMPLES
