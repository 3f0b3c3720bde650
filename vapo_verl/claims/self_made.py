"""`self`: claims made by a local model, such as the one to be trained (tables 13 to 15)."""

import argparse
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from vapo_verl.claims.generate import make_job
from vapo_verl.claims.job import run_job
from vapo_verl.claims.options import EndpointOptions, MakeOptions, RunOptions, ServeOptions
from vapo_verl.claims.serve import vllm_server
from vapo_verl.cli_options import options_from

LOG_NAME = "vllm-serve.log"


def run(arguments: argparse.Namespace) -> int:
    """The command; the server runs only while there is something to ask it.

    Raises:
        ServerError: the server does not come up.
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
        with _terminated_like_interrupted(), server as running:
            yield replace(sampling, base_url=running.base_url, api_key=running.api_key)

    making = options_from(MakeOptions, arguments)
    return run_job(make_job(served.model, options, making), options, endpoint)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM, a scheduler's, end the run as Ctrl-C does: by default it skips all clean-up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
