"""`self`: claims made by a local model, such as the one to be trained (tables 13 to 15).

A `vllm serve` process on the loopback interface runs as long as the command, and also ends with it
after errors and signals.
"""

import argparse
import http.client
import os
import secrets
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vapo_verl.claims.generate import make_job
from vapo_verl.claims.job import run_job
from vapo_verl.claims.options import EndpointOptions, MakeOptions, RunOptions, ServeOptions
from vapo_verl.cli_options import options_from
from vapo_verl.process_tree import guarded, terminate_tree

HOST = "127.0.0.1"
LOG_NAME = "vllm-serve.log"
_LOG_LINES = 30
_POLL_S = 0.3


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the server runs only while there are requests.

    Raises:
        ServerError: the server does not start.
    """
    options, served = options_from(RunOptions, arguments), options_from(ServeOptions, arguments)
    # before the model loads: it refuses bad values
    sampling = options_from(EndpointOptions, arguments, model=served.model)

    @contextmanager
    def endpoint() -> Iterator[EndpointOptions]:
        server = vllm_server(
            served.model,
            shlex.split(served.vllm_args),
            log=options.out / LOG_NAME,
            start_timeout_s=served.start_timeout_s,
        )
        with server as running:
            yield replace(sampling, base_url=running.base_url, api_key=running.api_key)

    making = options_from(MakeOptions, arguments)
    return run_job(make_job(served.model, options, making), options, endpoint)


class ServerError(ValueError):
    """The server did not start; the message has the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """A server that answers."""

    base_url: str
    api_key: str
    """Random per server: the loopback is open to all users of the machine."""


@contextmanager
def vllm_server(
    model: str, vllm_args: Sequence[str], *, log: Path, start_timeout_s: float
) -> Iterator[RunningServer]:
    """Run `vllm serve model` while the context is open.

    Args:
        log: receives all output of the server, and is kept.

    Raises:
        ServerError: the server ended, or did not answer in `start_timeout_s`.
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
    environment.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")  # compiled at the start, by nvcc
    return subprocess.Popen(
        serve_command(model, vllm_args, port),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment | {"VLLM_API_KEY": api_key},  # all users could read an argument
        start_new_session=True,  # Ctrl-C goes to this process: it stores finished images first
    )


def _wait_until_healthy(
    process: subprocess.Popen[bytes], port: int, log: Path, timeout_s: float
) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_healthy(port):
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


def is_healthy(port: int) -> bool:
    """Whether the server at this port of the machine answers that it is ready."""
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
