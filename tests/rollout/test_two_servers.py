"""Two real vLLM replicas behind veRL's client: each image is preprocessed by one of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vapo_verl.platform import CPU_ENVIRONMENT

SCRIPT = Path(__file__).with_name("two_servers.py")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_eight_prompts_with_four_responses_each_put_four_images_on_each_server(digits_data):
    data = digits_data(train=8, val=4)["train"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(data)],
        env={**os.environ, **CPU_ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(x for x in done.stdout.splitlines() if x.startswith('{"servers"')))
    first, second = found["servers"]
    assert len(set(found["prompts"])) == 8
    assert {*first} | {*second} == set(found["prompts"])
    assert (len(first), len(second)) == (4, 4)
    # 4 responses and the 8 anchors of each
    assert {*first.values(), *second.values()} == {4 * (1 + 8)}
