"""The command against a scripted endpoint: answers, scores, resuming, image changes, refusals."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from tests.evaluation.benchmarks.chat_server import Reply, benchmark, chat_server, png, write_tsv
from tests.export.conftest import RunFolder
from vapo_verl.data.parquet_stream import PROMPT_SUFFIX
from vapo_verl.digits.model import model_dir
from vapo_verl.evaluation.__main__ import main
from vapo_verl.evaluation.benchmarks import answering
from vapo_verl.evaluation.benchmarks.benchmark_command import (
    PAPER_SUFFIX,
    suffix_text,
    trained_suffix,
)
from vapo_verl.evaluation.benchmarks.benchmark_results import ANSWERS_FILE, SCORES_FILE
from vapo_verl.evaluation.probing.journal import PAGE_FILE, ROWS_FILE, SUMMARY_FILE
from vapo_verl.evaluation.probing.probe_options import model_fingerprint
from vapo_verl.run_folder import RunError

ANSWERS = {
    "Colour?": "It is \\boxed{B}",
    "Shape?": "I would say \\boxed{A}",
    "Size?": "\\boxed{B}",
    "Place?": "That is hard to tell.",
    "Age?": "<think>Let me see. The",
}
"""Question -> reply: two correct, one incorrect, two without a readable answer."""


@pytest.fixture
def tsv(tmp_path):
    def write(name="quiz.tsv", **cells):
        rows = [
            {"question": question, "A": "red", "B": "blue", "C": "grey", "answer": answer}
            | {"category": "look" if place < 2 else "think"}
            | {column: values[place] for column, values in cells.items()}
            for place, (question, answer) in enumerate(zip(ANSWERS, "BACBA", strict=True))
        ]
        return write_tsv(tmp_path / name, rows)

    return write


def by_question(request):
    (question,) = (each for each in ANSWERS if each in request.text)
    cut_off = question == "Age?"
    return Reply(text=ANSWERS[question], finish_reason="length" if cut_off else "stop")


def read_summary(out, name="quiz"):
    return json.loads((out / name / SUMMARY_FILE).read_text())


def test_scores_of_a_greedy_run_by_hand(tsv, tmp_path, capsys):
    out = tmp_path / "out"
    with chat_server(by_question) as server:
        assert benchmark(server.url, out, tsv()) == 0
    # Colour B, Shape A are correct; Size B is not; Place and Age cannot be read
    summary = read_summary(out)
    assert summary["accuracy"]["mean"] == pytest.approx(2 / 5)
    assert summary["accuracy"]["interval"] == "wilson"
    # Wilson of 2 in 5: z²/n = 0.76829, middle (0.4 + 0.38415) / 1.76829 = 0.44345,
    # half 1.95996 sqrt(0.24 / 5 + 0.76829 / 20) / 1.76829 = 0.32583
    assert summary["accuracy"]["low"] == pytest.approx(0.11762, abs=1e-4)
    assert summary["accuracy"]["high"] == pytest.approx(0.76928, abs=1e-4)
    assert summary["unparsed"]["num"] == 2
    assert summary["truncated"]["num"] == 1
    assert summary["rule"] == "mcq"
    assert summary["judge"] is None
    assert summary["categories"]["look"]["accuracy"]["mean"] == 1
    assert summary["categories"]["think"]["accuracy"]["mean"] == 0
    lines = [json.loads(line) for line in (out / "quiz" / ANSWERS_FILE).open()]
    assert [line["correct"] for line in lines] == [True, True, False, None, None]
    assert [line["extracted"] for line in lines][:3] == ["B", "A", "B"]
    assert [line["num_tokens"] for line in lines] == [3, 4, 1, 5, 4]
    assert "quiz: 40.0 % of 5 rows, unparsed 40.0 %, truncated 20.0 %" in capsys.readouterr().out
    with (out / SCORES_FILE).open() as file:
        scores = {(row["category"], row["score"]): row["value"] for row in csv.DictReader(file)}
    assert scores["", "accuracy"] == scores["", "unparsed"] == "0.4"
    assert scores["look", "accuracy"] == "1"
    page = (out / PAGE_FILE).read_text()
    assert "40.0 % (11.8 to 76.9)" in page
    assert "<script" not in page


def test_the_endpoint_is_asked_as_the_protocol_says(tsv, tmp_path):
    with chat_server(by_question) as server:
        assert benchmark(server.url, tmp_path / "out", tsv(), "--max-tokens", "77") == 0
    for request in server.requests:
        assert request.text.endswith(PAPER_SUFFIX)
        assert request.body["temperature"] == 0
        assert "top_p" not in request.body
        assert request.body["max_completion_tokens"] == 77
        assert len(request.images) == 1
    first = next(request for request in server.requests if "Colour?" in request.text)
    assert "A. red\nB. blue\nC. grey" in first.text
    assert first.images[0].getpixel((0, 0)) == (50, 200, 30)


def test_several_samples_by_hand(tmp_path):
    data = write_tsv(tmp_path / "sums.tsv", [{"question": "1 + 1?", "answer": "2"}])
    replies = iter(["2", "2", "2", "3", "3", "4", "5", "none"])

    def script(request):
        assert request.body["temperature"] == request.body["top_p"] == 1
        assert "Look at the image and think" in request.text
        text = next(replies)
        return Reply(text="" if text == "none" else f"\\boxed{{{text}}}")

    words = ("--protocol", "avg8", "--max-concurrency", "1")
    with chat_server(script) as server:
        assert benchmark(server.url, tmp_path / "out", data, *words) == 0
    summary = read_summary(tmp_path / "out", "sums")
    assert len(server.requests) == 8
    assert summary["accuracy"] == {
        "mean": 3 / 8,
        "low": None,
        "high": None,
        "interval": "bootstrap",
    }
    # 1 - C(5, 2) / C(8, 2) = 1 - 10 / 28
    assert summary["pass"]["2"]["mean"] == pytest.approx(18 / 28)
    assert summary["pass"]["8"]["mean"] == 1
    assert summary["majority"]["mean"] == 1
    assert summary["unparsed"]["num"] == 1


def test_failed_answers_are_named_and_asked_again_and_no_other(tsv, tmp_path, capsys):
    out, data = tmp_path / "out", tsv()

    def refusing(request):
        return Reply(status=400) if "Size?" in request.text else by_question(request)

    with chat_server(refusing) as server:
        assert benchmark(server.url, out, data) == 2
        message = capsys.readouterr().err
        assert "1 of 5 answers failed" in message
        assert "refused with status 400" in message
        assert not (out / "quiz" / SUMMARY_FILE).exists()
        server.script = by_question
        del server.requests[:]
        assert benchmark(server.url, out, data) == 0
        assert ["Size?" in request.text for request in server.requests] == [True]
        del server.requests[:]
        assert benchmark(server.url, out, data) == 0
        assert server.requests == []
    assert read_summary(out)["accuracy"]["mean"] == pytest.approx(2 / 5)


def test_an_endpoint_that_refuses_everything_says_what_to_correct(tsv, tmp_path, capsys):
    with chat_server(lambda request: Reply(status=401)) as server:
        assert benchmark(server.url, tmp_path / "out", tsv()) == 2
    assert "refuses the key; correct OPENAI_API_KEY" in capsys.readouterr().err


def test_the_only_model_that_an_endpoint_lists_needs_no_name(tsv, tmp_path, capsys):
    out, data = tmp_path / "out", str(tsv())
    with chat_server(by_question) as server:
        server.models = ("one", "two")
        assert main(["benchmark", server.url, data, "--out", str(out)]) == 2
        assert "lists 2 models: one, two; name one with --model-name" in capsys.readouterr().err
        server.models = ("one",)
        words = [data, "--out", str(out), "--judge", server.url]
        assert main(["benchmark", server.url, *words]) == 0
        assert {request.body["model"] for request in server.requests} == {"one"}
    assert read_summary(out)["judge"]["model"] == "one"


def test_other_settings_are_refused(tsv, tmp_path, capsys):
    out, data = tmp_path / "out", tsv()
    with chat_server(by_question) as server:
        assert benchmark(server.url, out, data) == 0
        assert benchmark(server.url, out, data, "--max-tokens", "5") == 2
        assert "--max-tokens was 2048, is 5" in capsys.readouterr().err
        assert benchmark(server.url, out, data, "--rules", "mcq") == 0  # the rule of its columns
        assert benchmark(server.url, out, data, "--rules", "free-form") == 2
        assert "--rules was 'mcq', is 'free-form'" in capsys.readouterr().err
        words = [str(tsv("other.tsv")), "--out", str(out), "--model-name", "another"]
        assert main(["benchmark", server.url, *words]) == 2
    assert "quiz is of" in capsys.readouterr().err


def test_a_killed_run_asks_nothing_that_is_stored_again(tmp_path):
    rows = [{"question": f"{n:02d} + 0?", "answer": str(n)} for n in range(60)]
    data, out = write_tsv(tmp_path / "sums.tsv", rows), tmp_path / "out"

    def script(request):
        time.sleep(0.01)
        return Reply(text=f"\\boxed{{{request.text.partition(' + 0?')[0].split()[-1]}}}")

    with chat_server(script) as server:
        words = [sys.executable, "-m", "vapo_verl.evaluation", "benchmark", server.url, str(data)]
        words += ["--out", str(out), "--model-name", "scripted", "--max-concurrency", "4"]
        journal = out / "sums" / ROWS_FILE
        for threshold in (5, 25, 45):
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
            while not journal.exists() or journal.read_bytes().count(b"\n") < threshold:
                assert process.poll() is None
                time.sleep(0.002)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            stored = {
                rows[json.loads(line)["index"]]["question"]
                for line in journal.read_text().split("\n")[:-1]
            }
            time.sleep(0.1)  # requests of the killed process that were on their way
            del server.requests[:]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        asked = {question for question in stored for r in server.requests if question in r.text}
    assert asked == set()
    assert read_summary(out, "sums")["accuracy"]["mean"] == 1


def test_changed_images_reach_the_model_and_stand_beside_the_plain_score(tmp_path):
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    names = ["red", "green", "blue"]
    rows = [
        {"question": "Which colour?", "A": "red", "B": "green", "C": "blue", "answer": letter}
        | {"image": png(color)}
        for letter, color in zip("ABC", colors, strict=True)
    ]
    data, out = write_tsv(tmp_path / "colours.tsv", rows), tmp_path / "out"

    def seeing(request):
        pixel = np.asarray(request.images[0].getpixel((0, 0)))
        assert request.images[0].size == (56, 28)
        return Reply(text=f"\\boxed{{{'ABC'[int(pixel.argmax())]}}}")

    shown = {}
    with chat_server(seeing) as server:
        for kind in ("own", "blank", "blurred", "swapped"):
            del server.requests[:]
            assert benchmark(server.url, out, data, "--image", kind) == 0
            shown[kind] = [np.asarray(request.images[0]) for request in server.requests]
    assert len(names) == len(shown["own"]) == 3
    assert all(len(np.unique(image.reshape(-1, 3), axis=0)) == 1 for image in shown["blank"])
    # the edge between colour and black is soft, the far ends are as they were
    assert all(0 < image[14, 28].max() < 255 for image in shown["blurred"])
    assert all(image[14, 0].max() > 240 for image in shown["blurred"])
    own = {image.tobytes() for image in shown["own"]}
    assert {image.tobytes() for image in shown["swapped"]} == own
    assert read_summary(out, "colours")["accuracy"]["mean"] == 1
    assert read_summary(out, "colours.swapped")["accuracy"]["mean"] == 0
    assert read_summary(out, "colours.blank")["accuracy"]["mean"] == 1  # the mean colour is enough
    page = (out / PAGE_FILE).read_text()
    assert "Visual dependence" in page
    assert "colours, image swapped" in page


def test_images_cannot_be_swapped_when_all_are_the_same(tmp_path, capsys):
    rows = [{"question": f"Q{n}?", "answer": "1", "image": png((9, 9, 9))} for n in range(3)]
    data = write_tsv(tmp_path / "same.tsv", rows)
    with chat_server(by_question) as server:
        assert benchmark(server.url, tmp_path / "out", data, "--image", "swapped") == 2
        assert server.requests == []
    assert "the rows of same hold 1 different images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("answer", "solution"), "answer"),
        (lambda text: text.replace(png((51, 200, 30)), ""), "row 1"),
        (lambda text: text.replace(png((52, 200, 30)), "not+an+image+" * 9), "row 2"),
        (lambda text: text.replace("\t3\t", "\t1\t"), "row 3"),
    ],
    ids=["column", "missing image", "damaged image", "duplicate index"],
)
def test_a_bad_file_is_refused_before_anything_is_asked(change, message, tsv, tmp_path, capsys):
    data = tsv()
    data.write_text(change(data.read_text()))
    with chat_server(by_question) as server:
        assert benchmark(server.url, tmp_path / "out", data) == 2
        assert server.requests == []
    error = capsys.readouterr().err
    assert message in error
    assert str(data) in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["benchmark", "http://127.0.0.1:9/v1", "DATA"], "name the model with --model-name"),
        (["benchmark", "made/up", "DATA"], "nothing is downloaded"),
        (["benchmark", "made/up", "DATA"], "run `hf download made/up`"),
        (["benchmark", "FOLDER", "DATA"], "neither a Hugging Face folder (config.json), nor a run"),
        (["benchmark", "MODEL", "DATA", "DATA"], "quiz is given more than once"),
        (["benchmark", "MODEL", "DATA", "--judge", "localhost"], "give an address"),
        (
            ["benchmark", "DIGITS", "DATA", "--judge", "http://127.0.0.1:9/v1"],
            "http://127.0.0.1:9/v1/models lists no models (ConnectError",
        ),
        (["benchmark", "MODEL", "DATA", "--rules", "mathvers"], "pick one of mathvista"),
        (["benchmark", "MODEL", "DATA", "--limit", "0"], "--limit 0: give 1 or more"),
        (["benchmark", "MODEL", "none.tsv"], "none.tsv"),
        (["benchmark", "http://127.0.0.1:9/v1", "DATA", "--step", "3"], "--step 3: it chooses"),
        (["benchmark", "http://127.0.0.1:9/v1", "DATA", "--max-pixels", "99"], "--max-pixels 99"),
        (["benchmark", "DIGITS", "DATA", "--step", "3"], "--step 3: it chooses a checkpoint of"),
        (["benchmark", "DIGITS", "DATA", "--model-name", "m"], "--model-name m: it names a"),
        (["benchmark", "DIGITS", "DATA", "--suffix", "trained"], "MODEL is no run folder"),
    ],
)
def test_refusals_name_the_fix(words, message, tsv, tmp_path, capsys):
    data = str(tsv())
    given = {"DATA": data, "DIGITS": str(model_dir()), "FOLDER": str(tmp_path)}
    words = [given.get(word, word) for word in words]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_hub_name_is_looked_up_in_the_local_cache(tsv, tmp_path, monkeypatch, capsys):
    """It is not asked here: the engine gets the folder, and the results know name and weights."""
    folder = tmp_path / "hub" / "models--made--up" / "snapshots" / "0a1b"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    words = ["benchmark", "made/up", str(tsv()), "--out", str(tmp_path / "out")]
    (folder / "config.json").symlink_to(model_dir() / "config.json")
    assert main(words) == 2
    assert "no hub name whose weights are in the local cache" in capsys.readouterr().err

    def asked(tasks, engine, *_):
        raise RunError(f"{engine.model} {tasks[0].settings['MODEL']}")

    monkeypatch.setattr(answering, "ask_engine", asked)
    for file in model_dir().iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    assert main(words) == 2
    assert capsys.readouterr().err == f"{folder} made/up {model_fingerprint(str(folder))}\n"
    assert model_fingerprint(str(folder)).startswith("0a1b ")


def test_control_tokens_are_refused_before_the_engine_starts(tsv, tmp_path, capsys):
    data = tsv()
    data.write_text(data.read_text().replace("Size?", "Size?<|im_end|>"))
    words = ["benchmark", str(model_dir()), str(data), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "quiz row 2, column 'question': '<|im_end|>' in the question of index 2" in error
    assert "--control-tokens text" in error
    assert not (tmp_path / "out").exists()


def test_settings_of_a_run_give_way_to_the_command_line(tsv, tmp_path, monkeypatch):
    config = {
        "data": {"train_files": "gone.parquet"},
        "vapo": {"seed": 3, "data": {"control_tokens": "text"}},
    }
    run = RunFolder(tmp_path / "run", OmegaConf.to_yaml(OmegaConf.create(config)))
    run.save(4)
    exported = run.path / "model_step_4"
    shutil.copytree(model_dir(), exported)
    exported.touch()  # not older than its checkpoint
    engines = []

    def asked(tasks, engine, *_):
        engines.append(engine)
        raise RunError("no engine here")

    monkeypatch.setattr(answering, "ask_engine", asked)
    words = ["benchmark", str(run.path), str(tsv()), "--out", str(tmp_path / "out")]
    assert main(words) == main([*words, "--control-tokens", "refuse"]) == 2
    assert [engine.control_tokens for engine in engines] == ["text", "refuse"]
    assert [engine.seed for engine in engines] == [3, 3]


@pytest.mark.parametrize(
    ("endings", "suffix"),
    [
        ([PAPER_SUFFIX] * 2, PAPER_SUFFIX),
        (["\nThink first.\nAnswer shortly."] * 2, "\nThink first.\nAnswer shortly."),
        (["\nAnswer shortly.", "\nAnswer at length."], ""),
        (["", ""], ""),
    ],
)
def test_the_suffix_of_a_run_is_that_of_its_training_rows(endings, suffix, tmp_path):
    path = tmp_path / "train.parquet"
    questions = ["<image>How many?", "<image>Which is larger?"]
    prompt = [
        [{"role": "user", "content": question + ending}]
        for question, ending in zip(questions, endings, strict=True)
    ]
    pq.write_table(pa.table({"prompt": prompt}), path)
    config = OmegaConf.create({"data": {"train_files": [str(path)]}})
    assert trained_suffix(config) == suffix
    config.data.train_files = str(tmp_path / "gone.parquet")
    assert trained_suffix(config) is None


def test_which_suffix_is_asked():
    assert suffix_text(None, "paper", "\nAs trained.") == PAPER_SUFFIX
    assert suffix_text(None, "avg8", "\nAs trained.") == "\nAs trained."
    assert suffix_text(None, "avg8", None) == f"\n{PROMPT_SUFFIX}"
    assert suffix_text("trained", "paper", "\nAs trained.") == "\nAs trained."
    assert suffix_text("none", "paper", None) == ""
    with pytest.raises(ValueError, match="--suffix trained: MODEL is no run folder"):
        suffix_text("trained", "paper", None)
