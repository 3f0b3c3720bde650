"""`self`: claims made by a local model, such as the one to be trained (tables 13 to 15)."""

import argparse
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vapo_verl.claims.arguments import endpoint_fields, make_options, run_options
from vapo_verl.claims.generate import make_job
from vapo_verl.claims.job import run_job
from vapo_verl.claims.options import EndpointOptions
from vapo_verl.claims.serve import vllm_server

LOG_NAME = "vllm-serve.log"


def run(arguments: argparse.Namespace) -> int:
    """The command; the server runs only while there is something to ask it.

    Raises:
        ServerError: the server does not come up.
    """
    options = run_options(arguments)
    fields = endpoint_fields(arguments)
    EndpointOptions(model=arguments.model, **fields)  # refuse bad values before the model loads

    @contextmanager
    def endpoint() -> Iterator[EndpointOptions]:
        server = vllm_server(
            arguments.model,
            shlex.split(arguments.vllm_args),
            log=options.out / LOG_NAME,
            start_timeout_s=arguments.start_timeout_s,
        )
        with _terminated_like_interrupted(), server as running:
            yield EndpointOptions(
                model=arguments.model,
                base_url=running.base_url,
                api_key=running.api_key,
                **fields,
            )

    return run_job(make_job(arguments.model, options, make_options(arguments)), options, endpoint)


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
