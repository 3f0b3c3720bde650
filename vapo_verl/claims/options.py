"""Options of a run; the arguments of the commands are these fields."""

import argparse
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from vapo_verl.claims.making.rules import ClaimRules
from vapo_verl.cli_options import cli, finite, options_from
from vapo_verl.data.errors import FileError, require_other_file, require_output
from vapo_verl.files import obstacle

OPENAI_URL = "https://api.openai.com/v1"
NO_KEY = "none"
"""Sent if no key is set: a local server needs none, but the client always sends one."""
MAX_CONCURRENCY, MAX_VOTES = 4096, 1000
"""A larger number is probably a typo, and each unit takes memory."""
TOKEN_LIMIT_NAMES = ("max_completion_tokens", "max_tokens")


def temperature(text: str) -> float | None:
    """A number, or None for `server`, the endpoint's own temperature."""
    return None if text == "server" else finite(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointOptions:
    """Where the model is, and how it samples."""

    model: str = field(metadata=cli(hidden=True))
    base_url: str = field(default=OPENAI_URL, metadata=cli(hidden=True))
    api_key: str = field(default=NO_KEY, repr=False, metadata=cli(hidden=True))
    """Read from the environment only; never stored or printed."""
    timeout_s: float = 120.0
    """Limit for one request, from its start to its last byte."""
    max_tokens: int = 4096
    """Limit of one answer, thinking included."""
    token_limit_name: str = field(
        default=TOKEN_LIMIT_NAMES[0], metadata=cli(choices=TOKEN_LIMIT_NAMES)
    )
    """The endpoint's name for that limit; older servers know only the second."""
    temperature: float | None = field(default=None, metadata=cli(parse=temperature))
    """A number, or `server` for the server's own value, the default of generate and self; some
    models accept no other."""

    def __post_init__(self) -> None:
        require_positive("--timeout-s", self.timeout_s)
        require_positive("--max-tokens", self.max_tokens)
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise ValueError(f"--temperature: {self.temperature}; give 0 or more, or `server`")
        require_address(self.base_url, "OPENAI_BASE_URL")
        if not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ValueError(
                "OPENAI_API_KEY: holds a line break or another character that no key has; "
                "copy the key again"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryOptions:
    """When a request is sent again."""

    max_retries: int = 6
    """Retries of one request after transient faults; then its image fails."""
    backoff_s: float = 1.0
    """Wait after the first fault; it doubles with each."""
    max_backoff_s: float = field(default=60.0, metadata=cli(hidden=True))
    max_wait_s: float = 300.0
    """Upper limit of the wait that the endpoint's Retry-After asks for."""

    def __post_init__(self) -> None:
        if self.max_retries < 0 or not 0 <= self.backoff_s < math.inf:
            given = f"{self.max_retries} and {self.backoff_s}"
            raise ValueError(f"--max-retries and --backoff-s: {given}; give 0 or more")
        require_positive("--max-wait-s", self.max_wait_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The images, the folder, and the request rate."""

    source: Path = field(metadata=cli(positional="SOURCE"))
    """Parquet file, or folder of parquet or images."""
    out: Path
    """Folder for the shards; an interrupted run resumes there."""
    column: str = "images"
    """Image column of parquet rows."""
    image_root: Path = Path()
    """Where relative image paths in parquet rows start."""
    limit: int | None = None
    """Use only the first N images of the source, including stored ones."""
    max_concurrency: int = 32
    """Images processed at once, each with one request in flight."""
    requests_per_minute: float | None = None
    """Most requests started per minute; None: no limit."""
    stop_after_failures: int = 100
    """Stop when this many images fail in a row: the endpoint is down, or refuses all."""
    max_pixels: int | None = None
    """Larger images are shrunk before they are sent."""
    seed: int = 0
    """Seeds the jitter of waits, and the order of the claims in a record."""
    dry_run: bool = False
    """Count images and estimate tokens; send no requests."""
    retry: RetryOptions = field(default_factory=RetryOptions)

    def __post_init__(self) -> None:
        require_positive("--max-concurrency", self.max_concurrency)
        require_at_most("--max-concurrency", self.max_concurrency, MAX_CONCURRENCY)
        require_positive("--stop-after-failures", self.stop_after_failures)
        for name, value in {"--limit": self.limit, "--max-pixels": self.max_pixels}.items():
            if value is not None:
                require_positive(name, value)
        if reason := obstacle(self.out):
            raise FileError(f"--out: {self.out} cannot be written, {reason}; give another folder")


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeOptions:
    """How the claims of an image are made."""

    rules: ClaimRules = field(default_factory=ClaimRules)
    max_attempts: int = 5
    """Answers per image; later requests ask only for the missing claims."""
    require_full: bool = False
    """Do not store short records: such images fail, and the next run retries them."""

    def __post_init__(self) -> None:
        require_positive("--max-attempts", self.max_attempts)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """How claims are checked."""

    claims: Path = field(metadata=cli(positional="CLAIMS_DIR"))
    """Folder that generate or self wrote."""
    votes: int = 3
    """Answers per claim; an even number may tie, and a tied claim is dropped."""
    separate_votes: bool = False
    """One request per vote, for endpoints that refuse `n`."""

    def __post_init__(self) -> None:
        require_positive("--votes", self.votes)
        require_at_most("--votes", self.votes, MAX_VOTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The model that `self` serves."""

    model: str
    """Path or name, as `vllm serve` takes it."""
    vllm_args: str = ""
    """For `vllm serve`: --vllm-args="--dtype float32"."""
    start_timeout_s: float = 1800.0
    """Time limit for the server to answer."""

    def __post_init__(self) -> None:
        try:
            shlex.split(self.vllm_args)
        except ValueError as error:  # it says which character has no end
            reason = f"{error} in {self.vllm_args!r}"
            raise ValueError(f"--vllm-args: {reason}; end it, or escape it") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachOptions:
    """The files of `attach`, and which rows get claims."""

    claims_dir: Path = field(metadata=cli(positional="CLAIMS_DIR"))
    """Folder written by generate or check."""
    train: Path = field(metadata=cli(positional="TRAIN"))
    """Parquet file with images."""
    out: Path = field(metadata=cli(metavar="OUT.parquet"))
    column: str = "images"
    """Column of the images: a list per row, or one image."""
    image_root: Path = Path()
    """Where relative image paths in TRAIN start; OUT has them as they are."""
    min_claims: int = field(default=1, metadata=cli(metavar="N"))
    """An image with fewer claims counts as one without."""
    drop_uncovered: bool = False
    """Leave out the rows that have no claims in the end."""
    single_image_only: bool = False
    """Rows of several images get no claims; otherwise their claims say 'In image 2, ...'."""
    replace: bool = False
    """Replace existing claims by new ones; uncovered rows keep theirs."""

    def __post_init__(self) -> None:
        if self.min_claims < 1:
            raise ValueError(f"--min-claims is {self.min_claims}, want at least 1")
        require_output(self.out, suffix=".parquet")
        require_other_file(self.out, self.train)


def endpoint_from(environment: Mapping[str, str], arguments: argparse.Namespace) -> EndpointOptions:
    """Endpoint options from the command line, OPENAI_BASE_URL, OPENAI_API_KEY and, without
    `--model`, VAPO_CLAIMS_MODEL.

    Raises:
        ValueError: no model is given, or the endpoint is OpenAI and there is no key.
    """
    model = arguments.model or environment.get("VAPO_CLAIMS_MODEL")
    if not model:
        raise ValueError("--model: not given; give it, or set VAPO_CLAIMS_MODEL")
    base_url = environment.get("OPENAI_BASE_URL") or OPENAI_URL
    api_key = environment.get("OPENAI_API_KEY") or NO_KEY
    if base_url == OPENAI_URL and api_key == NO_KEY:
        raise ValueError(
            "OPENAI_API_KEY: not set; set it, or set OPENAI_BASE_URL to a server that needs none"
        )
    return options_from(EndpointOptions, arguments, model=model, base_url=base_url, api_key=api_key)


def require_address(url: str, name: str) -> None:
    """Refuse an invalid address or one that holds a key; `name` is its setting."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.username is None
        _ = parts.port  # raises ValueError if it is no number
    except ValueError:
        good = False
    if not good or not url.isprintable():
        raise ValueError(
            f"{name}: {url!r} is no address; write it as https://HOST:PORT/v1, and a key "
            "into OPENAI_API_KEY"
        )


def require_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: {value}; give more than 0")


def require_at_most(name: str, value: int, high: int) -> None:
    if value > high:
        raise ValueError(f"{name}: the number is too large; give {high} or less")
