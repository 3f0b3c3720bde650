"""What a run is asked to do. The defaults of the command line are the ones here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vapo_verl.claims.making.rules import ClaimRules

OPENAI_URL = "https://api.openai.com/v1"
NO_KEY = "none"
"""Sent where no key is set: a local server asks for none, but the client wants one."""
TOKEN_LIMIT_NAMES = ("max_completion_tokens", "max_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointOptions:
    """Where the model is, and how it samples."""

    model: str
    base_url: str = OPENAI_URL
    api_key: str = field(default=NO_KEY, repr=False)
    """Only ever from the environment; never stored or printed."""
    timeout_s: float = 120.0
    """For one request, from its start to its last byte."""
    max_tokens: int = 4096
    """Of one answer, thinking included."""
    token_limit_name: str = TOKEN_LIMIT_NAMES[0]
    """What the endpoint calls that limit; older servers know only the second name."""
    temperature: float | None = None
    """None leaves it to the server; some models accept no other."""

    def __post_init__(self) -> None:
        require_positive("--timeout-s", self.timeout_s)
        require_positive("--max-tokens", self.max_tokens)
        if self.temperature is not None and self.temperature < 0:
            raise ValueError(f"--temperature: {self.temperature}; give 0 or more, or `server`")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryOptions:
    """When a request is sent again."""

    max_retries: int = 6
    """Further tries of one request after transient faults; then its image has failed."""
    backoff_s: float = 1.0
    """Wait after the first fault; it doubles with each."""
    max_backoff_s: float = 60.0

    def __post_init__(self) -> None:
        if self.max_retries < 0 or self.backoff_s < 0:
            given = f"{self.max_retries} and {self.backoff_s}"
            raise ValueError(f"--max-retries and --backoff-s: {given}; give 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The images, the folder, and the pace."""

    source: Path
    out: Path
    column: str = "images"
    image_root: Path = Path()
    """Where relative image paths in parquet rows start."""
    limit: int | None = None
    """Only the first so many images of the source, stored ones among them."""
    max_concurrency: int = 32
    """Images in work at once, each with one request on its way."""
    requests_per_minute: float | None = None
    stop_after_failures: int = 100
    """Stop when so many images fail one after another: the endpoint is down, or refuses all."""
    max_pixels: int | None = None
    """Larger images are shrunk before they are sent."""
    price_table: Path | None = None
    """None: the table that ships with the package."""
    seed: int = 0
    """Of the jitter of waits, and of the order of the claims in a record."""
    dry_run: bool = False
    retry: RetryOptions = field(default_factory=RetryOptions)

    def __post_init__(self) -> None:
        require_positive("--max-concurrency", self.max_concurrency)
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

    claims: Path
    """Folder of the records to check."""
    votes: int = 3
    """Answers per claim; an even number may tie, and a tied claim is dropped."""
    separate_votes: bool = False
    """One request a vote, for endpoints that refuse `n`."""

    def __post_init__(self) -> None:
        require_positive("--votes", self.votes)


def endpoint_from(
    environment: Mapping[str, str], model: str | None, **given: object
) -> EndpointOptions:
    """Endpoint options from OPENAI_BASE_URL, OPENAI_API_KEY and, without `model`,
    VAPO_CLAIMS_MODEL.

    Raises:
        ValueError: no model is named, or OpenAI itself is meant and there is no key.
    """
    model = model or environment.get("VAPO_CLAIMS_MODEL")
    if not model:
        raise ValueError("--model: not given; give it, or set VAPO_CLAIMS_MODEL")
    base_url = environment.get("OPENAI_BASE_URL") or OPENAI_URL
    api_key = environment.get("OPENAI_API_KEY") or NO_KEY
    if base_url == OPENAI_URL and api_key == NO_KEY:
        raise ValueError(
            "OPENAI_API_KEY: not set; set it, or set OPENAI_BASE_URL to a server that needs none"
        )
    return EndpointOptions(model=model, base_url=base_url, api_key=api_key, **given)  # type: ignore[arg-type]


def require_positive(name: str, value: float) -> None:
    if value <= 0:
        raise ValueError(f"{name}: {value}; give more than 0")
