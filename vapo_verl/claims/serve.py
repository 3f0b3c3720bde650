"""A `vllm serve` process of our own on the loopback, ended whatever happens."""

import http.client
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vapo_verl.process_tree import guarded, terminate_tree

HOST = "127.0.0.1"
_LOG_LINES = 30
_POLL_S = 0.3


class ServerError(ValueError):
    """The server did not come up; the message has the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """A server that answers."""

    base_url: str
    api_key: str
    """Drawn for this server: the loopback is open to all users of the machine."""


@contextmanager
def vllm_server(
    model: str, vllm_args: Sequence[str], *, log: Path, start_timeout_s: float
) -> Iterator[RunningServer]:
    """Run `vllm serve model` while the context is open.

    Args:
        log: takes all that the server prints, and is left for whoever wants to know.

    Raises:
        ServerError: it ended, or did not answer in `start_timeout_s`.
    """
    port, api_key = _free_port(), secrets.token_hex(16)
    with guarded() as watch, log.open("wb") as output:
        process = _start(model, vllm_args, port, api_key, output.fileno())
        try:
            watch(process.pid)
            _wait_until_healthy(process, port, log, start_timeout_s)
            yield RunningServer(base_url=f"http://{HOST}:{port}/v1", api_key=api_key)
            if process.poll() is not None:
                tell = f"vllm serve ended by itself with code {process.returncode}"
                print(f"{tell}; the end of {log}:\n{_tail(log)}", file=sys.stderr)
        finally:
            terminate_tree(process.pid)
            process.wait()


def serve_command(model: str, vllm_args: Sequence[str], port: int) -> list[str]:
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model]
    return [*command, "--host", HOST, "--port", str(port), *vllm_args]


def _start(
    model: str, vllm_args: Sequence[str], port: int, api_key: str, output: int
) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    return subprocess.Popen(
        serve_command(model, vllm_args, port),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment | {"VLLM_API_KEY": api_key},  # as an argument everybody could read it
        start_new_session=True,  # Ctrl-C is for us: finished images are stored before it ends
    )


def _wait_until_healthy(
    process: subprocess.Popen[bytes], port: int, log: Path, timeout_s: float
) -> None:
    deadline = time.monotonic() + timeout_s
    while not _is_healthy(port):
        if process.poll() is not None:
            raise ServerError(
                f"vllm serve ended with code {process.returncode}; correct --model or --vllm-args."
                f" The end of {log}:\n{_tail(log)}"
            )
        if time.monotonic() > deadline:
            raise ServerError(
                f"vllm serve does not answer after {timeout_s:g} s; raise --start-timeout-s."
                f" The end of {log}:\n{_tail(log)}"
            )
        time.sleep(_POLL_S)


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_LOG_LINES:])
