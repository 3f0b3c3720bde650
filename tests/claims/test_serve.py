"""The server process of `self`: a stand-in for vLLM always ends, and its children with it."""

import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from vapo_verl import process_tree
from vapo_verl.claims import serve
from vapo_verl.claims.serve import ServerError, vllm_server

STAND_IN = """
    import http.server, os, subprocess, sys
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("child", child.pid, flush=True)
    class Healthy(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"


@pytest.fixture
def stand_in(monkeypatch):
    """Start a small program in place of vLLM."""

    def use(code: str) -> None:
        def command(model, vllm_args, port):
            return [sys.executable, "-c", textwrap.dedent(code), str(port), *vllm_args]

        monkeypatch.setattr(serve, "serve_command", command)

    return use


def children(log) -> list[int]:
    return [int(line.split()[1]) for line in log.read_text().splitlines() if "child" in line]


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and process_tree.is_alive(psutil.Process(pid))


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_server_and_its_children_end_with_the_context(stand_in, tmp_path, error):
    stand_in(STAND_IN)
    log = tmp_path / "log"
    try:
        with vllm_server("model", [], log=log, start_timeout_s=30) as running:
            assert running.base_url.startswith("http://127.0.0.1:")
            (child,) = children(log)
            assert is_running(child)
            if error:
                raise error
    except BaseException as raised:
        assert type(raised) is error
    assert not is_running(child)


def test_one_that_will_not_end_is_made_to(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(process_tree, "TERM_S", 0.2)
    stand_in(textwrap.dedent(DEAF) + textwrap.dedent(STAND_IN))
    started = time.monotonic()
    with vllm_server("model", [], log=tmp_path / "log", start_timeout_s=30):
        (child,) = children(tmp_path / "log")
    assert time.monotonic() - started < 20
    assert not is_running(child)


def test_one_that_ends_at_once_shows_the_end_of_its_log(stand_in, tmp_path):
    stand_in("import sys; print('no such model'); sys.exit(3)")
    with (
        pytest.raises(ServerError, match=r"code 3; correct --model(.|\n)*no such model"),
        vllm_server("model", [], log=tmp_path / "log", start_timeout_s=30),
    ):
        pass


def test_one_that_never_answers_is_given_up(stand_in, tmp_path):
    stand_in("import time; print('loading', flush=True); time.sleep(600)")
    with (
        pytest.raises(ServerError, match=r"after 2.5 s; raise --start-timeout-s(.|\n)*loading"),
        vllm_server("model", [], log=tmp_path / "log", start_timeout_s=2.5),
    ):
        pass


def test_the_server_gets_a_key_of_its_own_and_not_the_users(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-users")
    shown = (
        "import os; print(os.environ.get('OPENAI_API_KEY'), os.environ['VLLM_API_KEY'], "
        "os.environ['VLLM_USE_FLASHINFER_SAMPLER'], flush=True)"
    )
    stand_in(shown + textwrap.dedent(STAND_IN))
    with vllm_server("model", [], log=tmp_path / "log", start_timeout_s=30) as running:
        assert (tmp_path / "log").read_text().split()[:3] == ["None", running.api_key, "0"]


def test_the_server_ends_when_its_parent_is_killed(tmp_path):
    code = f"""
        import os, signal, sys
        from pathlib import Path
        from vapo_verl.claims import serve
        serve.serve_command = lambda model, args, port: [
            sys.executable, "-c", {textwrap.dedent(STAND_IN)!r}, str(port)
        ]
        with serve.vllm_server("m", [], log=Path(sys.argv[1]), start_timeout_s=30) as running:
            print(running.base_url, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "log")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    port = int(done.stdout.rsplit(":", 1)[1].split("/")[0])
    (child,) = children(tmp_path / "log")
    deadline = time.monotonic() + 20
    while serve.is_healthy(port) or is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)
