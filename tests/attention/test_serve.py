"""`vllm serve` with the printed arguments: values in the response of a client that asks."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from PIL import Image

from vapo_verl.attention import decode_visual_attention, engine_args
from vapo_verl.digits.model import model_dir


def printed(*options):
    command = [sys.executable, "-m", "vapo_verl.attention", *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_shell_passes_the_printed_arguments_on_whole():
    shell = (
        f"for word in $({sys.executable} -m vapo_verl.attention --max-spans 64 --layers 3 1);"
        " do echo $word; done"
    )
    words = subprocess.run(["bash", "-c", shell], capture_output=True, text=True).stdout.split("\n")
    given = dict(zip(words[0:-1:2], words[1::2], strict=True))
    expected = engine_args([3, 1], on_request=True, max_spans=64)
    assert json.loads(given.pop("--additional-config")) == expected["additional_config"]
    assert given == {
        "--worker-cls": expected["worker_cls"],
        "--scheduler-cls": expected["scheduler_cls"],
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--layers", "1", "1"), "distinct layer indices"), (("--max-spans", "0"), "at least 1")],
)
def test_bad_options_are_refused(options, words):
    done = printed(*options)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a server over the packaged model."""
    log = tmp_path_factory.mktemp("serve") / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model_dir())),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "digits"),
        *("--dtype", "float32", "--enforce-eager", "--max-model-len", "512"),
        *("--kv-cache-memory-bytes", str(2**27)),
        *printed("--per-layer").stdout.split(),
    ]
    environment = {**os.environ, "TORCHDYNAMO_DISABLE": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        for _ in range(240):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1/chat/completions"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def ask(server, **arguments):
    file = io.BytesIO()
    Image.new("RGB", (56, 84), (200, 30, 30)).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What is the sum of the top row?"},
    ]
    body = {
        "model": "digits",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 12,
        **arguments,
    }
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_client_that_asks_gets_a_value_per_token_and_layer(server):
    answer = ask(server, vllm_xargs={"visual_attention": True}, n=2)
    for choice in answer["choices"]:
        values = decode_visual_attention(choice["routed_experts"])
        assert values.shape[1] == 2  # layers
        assert values.min() > 0 and values.max() < 1
    tokens = sum(len(decode_visual_attention(c["routed_experts"])) for c in answer["choices"])
    assert tokens == answer["usage"]["completion_tokens"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_other_clients_see_nothing(server):
    assert ask(server)["choices"][0]["routed_experts"] is None
