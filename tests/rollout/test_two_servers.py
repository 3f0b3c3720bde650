"""Two real vLLM replicas behind veRL's client: each image is preprocessed by one of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vapo_verl.platform import CPU_ENVIRONMENT

SCRIPT = Path(__file__).with_name("two_servers.py")


def roll_out(data: Path, *options: str) -> dict:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(data), *options],
        env={**os.environ, **CPU_ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(x for x in done.stdout.splitlines() if x.startswith('{"servers"')))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_server_processes_each_of_its_images_once(digits_data):
    """8 prompts x 4 responses x 8 anchors, with the tokens that requests with images give."""
    data = digits_data(train=8, val=4)["train"]
    found = roll_out(data)
    first, second = found["servers"]
    assert len(set(found["prompts"])) == 8
    assert {*first} | {*second} == set(found["prompts"])
    assert (len(first), len(second)) == (4, 4)
    assert {*first.values(), *second.values()} == {1}
    assert found["requests"] == [4 * 4 * (1 + 8)] * 2

    alone = roll_out(data, "--alone")
    assert {n for server in alone["servers"] for n in server.values()} == {4 * (1 + 8)}
    assert alone["responses"] == found["responses"]
