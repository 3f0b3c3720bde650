"""What a run is asked to do: the arguments of the commands are these fields."""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from vapo_verl.claims.making.rules import ClaimRules
from vapo_verl.cli_options import cli, finite, options_from
from vapo_verl.data.errors import FileError

OPENAI_URL = "https://api.openai.com/v1"
NO_KEY = "none"
"""Sent where no key is set: a local server asks for none, but the client wants one."""
MAX_CONCURRENCY, MAX_VOTES = 4096, 1000
"""A larger number is a slip of the keyboard: each one takes memory."""
TOKEN_LIMIT_NAMES = ("max_completion_tokens", "max_tokens")


def temperature(text: str) -> float | None:
    """A number, or `server` for the endpoint's own: None."""
    return None if text == "server" else finite(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointOptions:
    """Where the model is, and how it samples."""

    model: str = field(metadata=cli(hidden=True))
    base_url: str = field(default=OPENAI_URL, metadata=cli(hidden=True))
    api_key: str = field(default=NO_KEY, repr=False, metadata=cli(hidden=True))
    """Only ever from the environment; never stored or printed."""
    timeout_s: float = 120.0
    """Of one request, from its start to its last byte."""
    max_tokens: int = 4096
    """Limit of one answer, thinking included."""
    token_limit_name: str = field(
        default=TOKEN_LIMIT_NAMES[0], metadata=cli(choices=TOKEN_LIMIT_NAMES)
    )
    """What the endpoint calls that limit; older servers know only the second name."""
    temperature: float | None = field(default=None, metadata=cli(parse=temperature))
    """A number, or `server`: the server's own, and the default of generate and self; some models
    accept no other."""

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
    """Further tries of one request after transient faults; then its image has failed."""
    backoff_s: float = 1.0
    """Wait after the first fault; it doubles with each."""
    max_backoff_s: float = field(default=60.0, metadata=cli(hidden=True))
    max_wait_s: float = 300.0
    """Longest wait that the endpoint's Retry-After can ask for; a longer one is cut to it."""

    def __post_init__(self) -> None:
        if self.max_retries < 0 or not 0 <= self.backoff_s < math.inf:
            given = f"{self.max_retries} and {self.backoff_s}"
            raise ValueError(f"--max-retries and --backoff-s: {given}; give 0 or more")
        require_positive("--max-wait-s", self.max_wait_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The images, the folder, and the pace."""

    source: Path = field(metadata=cli(positional="SOURCE"))
    """Parquet file, or folder of parquet or images."""
    out: Path
    """Folder for the shards; goes on where one stopped."""
    column: str = "images"
    """Images' column of parquet rows."""
    image_root: Path = Path()
    """Where relative image paths in parquet rows start."""
    limit: int | None = None
    """Only the first so many images of the source, stored ones among them."""
    max_concurrency: int = 32
    """Images in work at once, each with one request on its way."""
    requests_per_minute: float | None = None
    """Start no more than these; None: no limit."""
    stop_after_failures: int = 100
    """Stop when so many images fail one after another: the endpoint is down, or refuses all."""
    max_pixels: int | None = None
    """Larger images are shrunk before they are sent."""
    seed: int = 0
    """Of the jitter of waits, and of the order of the claims in a record."""
    dry_run: bool = False
    """Count images, estimate tokens; ask nothing."""
    retry: RetryOptions = field(default_factory=RetryOptions)

    def __post_init__(self) -> None:
        require_positive("--max-concurrency", self.max_concurrency)
        require_at_most("--max-concurrency", self.max_concurrency, MAX_CONCURRENCY)
        require_positive("--stop-after-failures", self.stop_after_failures)
        for name, value in {"--limit": self.limit, "--max-pixels": self.max_pixels}.items():
            if value is not None:
                require_positive(name, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeOptions:
    """What counts as the claims of an image."""

    rules: ClaimRules = field(default_factory=ClaimRules)
    max_attempts: int = 5
    """Answers read per image; the later ones are asked only for what is missing."""
    require_full: bool = False
    """Store no short record: such images have failed, and the next run asks for them again."""

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
    """One request a vote, for endpoints that refuse `n`."""

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
    """Until it answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachOptions:
    """The files of `attach`, and which rows get claims."""

    claims_dir: Path = field(metadata=cli(positional="CLAIMS_DIR"))
    """Left by generate or check."""
    train: Path = field(metadata=cli(positional="TRAIN"))
    """Parquet file with images."""
    out: Path = field(metadata=cli(metavar="OUT.parquet"))
    column: str = "images"
    """Of the images, a list of them a row, or one."""
    image_root: Path = Path()
    """Where relative image paths in TRAIN start; OUT has them as they are."""
    min_claims: int = field(default=1, metadata=cli(metavar="N"))
    """An image with fewer claims counts as one without."""
    drop_uncovered: bool = False
    """Leave out the rows that end without claims."""
    single_image_only: bool = False
    """Rows of several images get no claims; else they say 'In image 2, ...'."""
    replace: bool = False
    """Rows that have claims get the new ones; those that are not covered keep theirs."""

    def __post_init__(self) -> None:
        if self.min_claims < 1:
            raise ValueError(f"--min-claims is {self.min_claims}, want at least 1")
        if self.out.suffix != ".parquet":
            raise FileError(f"--out: {self.out} does not end in .parquet; veRL goes by that")
        if self.out.exists() and self.train.exists() and self.out.samefile(self.train):
            raise FileError(f"--out: {self.out} is TRAIN itself; give another path")


def endpoint_from(environment: Mapping[str, str], arguments: argparse.Namespace) -> EndpointOptions:
    """Endpoint options from the command line, OPENAI_BASE_URL, OPENAI_API_KEY and, without
    `--model`, VAPO_CLAIMS_MODEL.

    Raises:
        ValueError: no model is named, or OpenAI itself is meant and there is no key.
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
    """Refuse what is no address, or holds a key; `name` is the setting that it stands in."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.username is None
        _ = parts.port  # raises ValueError for one that is no number
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
