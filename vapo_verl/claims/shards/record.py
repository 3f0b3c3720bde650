"""What is known of one image's claims, and how it is written as one line of a shard."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vapo_verl.data.claims_column import CLAIMS_PER_IMAGE, Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens and requests, as the endpoint counted them; 0 where it did not."""

    num_requests: int = 0
    """Requests that were answered. Those that failed on the way are not in here."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            num_requests=self.num_requests + other.num_requests,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How the votes of `check` fell on one claim."""

    text: str
    label: bool
    """The generator's label."""
    num_yes: int
    """Votes that the image supports the claim."""
    num_no: int
    num_unclear: int
    """Votes that were neither yes nor no."""

    @property
    def majority(self) -> bool | None:
        """What most yes/no votes say; None for a tie, or when no vote was yes or no."""
        return None if self.num_yes == self.num_no else self.num_yes > self.num_no

    @property
    def kept(self) -> bool:
        """Whether the majority agrees with the label."""
        return self.majority is not None and self.majority == self.label


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRecord:
    """All that is stored of one image: one line of a shard."""

    image_key: str
    """`images.image_key` of the image file's bytes."""
    claims: tuple[Claim, ...]
    """What to train on, in a shuffled order. After `check`, only the claims it kept."""
    model: str
    """Made the claims."""
    num_wanted: int = CLAIMS_PER_IMAGE
    """Claims that were asked for."""
    attempts: int = 1
    """Answers read until the claims were complete."""
    usage: Usage = field(default_factory=Usage)
    """Tokens of making these claims."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Candidates turned down, by reason: those of `answer` and of `choose`."""
    verdicts: tuple[Verdict, ...] | None = None
    """Left by `check`: one per claim it asked about, dropped claims too. None: not checked."""
    check_model: str | None = None
    """Gave the verdicts."""
    check_usage: Usage = field(default_factory=Usage)
    """Tokens of checking."""

    @property
    def status(self) -> str:
        """ "full", or "short" when there are fewer claims than were asked for."""
        return "full" if len(self.claims) >= self.num_wanted else "short"

    def to_json(self) -> str:
        """One line, without its newline; `status` is in it for readers that are not this class."""
        fields = asdict(self)  # the Mapping of reasons comes back as the dict it is
        return json.dumps({**fields, "status": self.status}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> "ClaimRecord":
        """Raises ValueError, TypeError or KeyError when the line is no record."""
        fields: dict[str, Any] = json.loads(line)
        del fields["status"]
        verdicts = fields["verdicts"]
        return cls(
            **fields
            | {
                "claims": tuple(Claim(**claim) for claim in fields["claims"]),
                "usage": Usage(**fields["usage"]),
                "check_usage": Usage(**fields["check_usage"]),
                "verdicts": None if verdicts is None else tuple(Verdict(**v) for v in verdicts),
            }
        )
