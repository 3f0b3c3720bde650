"""Counts of one run, kept while it goes on."""

from collections import Counter
from dataclasses import dataclass, field

from vapo_verl.claims.shards.record import ClaimRecord, Usage

_MAX_LISTED = 1000


@dataclass(slots=True, kw_only=True)
class RunTally:
    """What happened since this process began; the folder's totals are counted from its shards."""

    num_finished: int = 0
    """Images stored, short ones among them."""
    num_short: int = 0
    num_failed: int = 0
    num_failed_in_a_row: int = 0
    """Since the last image that was stored: a high number means the endpoint is down."""
    failure_reasons: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, str]] = field(default_factory=list)
    """The first of them in full: source, key, what happened."""
    retries: Counter[str] = field(default_factory=Counter)
    """Requests tried again, by reason."""
    attempts: Counter[int] = field(default_factory=Counter)
    """Images stored, by the number of answers they took."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Candidates turned down, by reason, failed images' too."""
    usage: Usage = field(default_factory=Usage)
    """All tokens of this run, also those spent on images that then failed."""

    def add_record(self, record: ClaimRecord) -> None:
        self.num_finished += 1
        self.num_short += record.status == "short"
        self.num_failed_in_a_row = 0
        self.attempts[record.attempts] += 1

    def add_failure(self, source: str, key: str, reason: str, detail: str) -> None:
        """An image that gets no record: what the endpoint did."""
        self.num_failed_in_a_row += 1
        self.add_unreadable(source, key, reason, detail)

    def add_unreadable(self, source: str, key: str, reason: str, detail: str) -> None:
        """An image that gets no record, through no fault of the endpoint."""
        self.num_failed += 1
        self.failure_reasons[reason] += 1
        if len(self.failures) < _MAX_LISTED:
            self.failures.append({"source": source, "key": key, "what": detail})
