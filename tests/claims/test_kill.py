"""generate is killed outright, again and again, and loses and repeats nothing that it stored."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vapo_verl.claims.images import image_key
from vapo_verl.claims.shards import read_records

NUM_IMAGES = 60
NUM_KILLS = 5


def with_ctrl_c() -> None:
    """Tests that run in the background of a shell ignore SIGINT, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start(server, parquet, tmp_path):
    """Begin generate in a process of its own."""
    source = parquet(NUM_IMAGES)
    environment = os.environ | {
        "OPENAI_BASE_URL": server.url,
        "OPENAI_API_KEY": "sk-test",
        "VAPO_CLAIMS_MODEL": "scripted-vlm",
    }
    started = []

    def begin(*extra: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "vapo_verl.claims", "generate", str(source)]
        command += ["--out", str(tmp_path / "out"), "--max-concurrency", "4", *extra]
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=with_ctrl_c,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def stored(folder: Path) -> list[str]:
    return [record.image_key for record in read_records(folder)]


def wait_for_requests(server, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 30
    while len(server.seen) < count and process.poll() is None:
        assert time.monotonic() < deadline, "no requests: does the command start?"
        time.sleep(0.002)


def slow_answers(scripted, seed: int):
    rng = random.Random(seed)

    def script(seen, num_before):
        # the same claims whatever came before, so that runs can be compared
        return scripted.Answer(
            texts=scripted.obedient(seen, 0).texts, delay_s=rng.uniform(0.0, 0.03)
        )

    return script


def test_kills_at_random_moments_lose_and_repeat_nothing(server, scripted, start, png, tmp_path):
    rng = random.Random(20)
    server.script = slow_answers(scripted, 1)
    out, moments = tmp_path / "out", []
    for _ in range(NUM_KILLS):
        before, num_seen = set(stored(out)), len(server.seen)
        process = start()
        wait_for_requests(server, num_seen + rng.randint(1, 9), process)
        time.sleep(rng.uniform(0.0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert before <= set(stored(out))
        moments.append((num_seen, before))
    moments.append((len(server.seen), set(stored(out))))
    process = start()
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed

    keys = stored(out)
    assert len(keys) == len(set(keys)) == NUM_IMAGES
    assert set(keys) == {image_key(png(number)) for number in range(NUM_IMAGES)}
    assert 0 < len(moments[-1][1]) < NUM_IMAGES  # some kills fell while there was work
    for num_seen, known in moments:
        asked_later = {seen.image_key for seen in server.seen[num_seen:]}
        assert not asked_later & known


def test_an_interrupt_stores_what_is_finished_and_tells_how_to_go_on(
    server, scripted, start, tmp_path
):
    def script(seen, num_before):
        """Work is left, and some of it under way, whenever the signal comes."""
        late = len(server.seen) > 10
        texts = scripted.obedient(seen, 0).texts
        return scripted.Answer(texts=texts, delay_s=60 if late else 0)

    server.script = script
    process = start()
    wait_for_requests(server, 12, process)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run the same command again" in printed and "Traceback" not in printed
    num_stored = len(stored(tmp_path / "out"))
    assert 0 < num_stored < NUM_IMAGES
    assert f"this run: {num_stored} images finished" in printed


def test_two_processes_do_not_write_one_folder(server, scripted, start):
    server.script = lambda seen, n: scripted.Answer(delay_s=60)
    first = start()
    wait_for_requests(server, 1, first)
    second = start()
    printed, _ = second.communicate(timeout=30)
    assert second.returncode == 2
    assert f"process {first.pid}" in printed
