"""Findings of checks; `examine` turns a failure of a check into a finding."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warning", "error"]
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One result of a check."""

    check: str
    """Name of the check, as in docs/doctor.md."""
    status: Status
    """``error``: a run cannot work or will die. ``warning``: it may, or will be slower."""
    found: str
    """The observation, with key and value if there are any."""
    fix: str = ""
    """What to do; empty when there is nothing to fix."""

    def __str__(self) -> str:
        line = f"{self.status:<8} {self.check}: {self.found}"
        return f"{line}\n{'':<8}   fix: {self.fix}" if self.fix else line

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def ok(check: str, found: str) -> Finding:
    return Finding(check=check, status="ok", found=found)


def warning(check: str, found: str, fix: str) -> Finding:
    return Finding(check=check, status="warning", found=found, fix=fix)


def error(check: str, found: str, fix: str) -> Finding:
    return Finding(check=check, status="error", found=found, fix=fix)


def examine(check: str, look: Callable[..., Iterable[Finding]], *arguments: Any) -> list[Finding]:
    """The findings of one check; an exception becomes its last finding.

    The text of a ``ValueError`` is written for users: key, value and fix. Any other exception means
    that the check itself failed, which is also an error.
    """
    found: list[Finding] = []
    try:
        found.extend(look(*arguments))
    except ValueError as problem:
        found.append(_from_message(check, str(problem)))
    except Exception as problem:
        found.append(
            error(
                check,
                f"this could not be checked: {type(problem).__name__}: {problem}",
                "fix what the message names; if the machine is fine, report the check",
            )
        )
    return found


def _from_message(check: str, message: str) -> Finding:
    """Split a one-line message at its last semicolon, which precedes the fix."""
    what, _, fix = message.rpartition("; ")
    if not what or "\n" in message:
        what, fix = message, "fix what the message names"
    return error(check, what, fix)


def gib(num_bytes: float) -> str:
    """Format bytes as `12.3 GiB`, or below 1 GiB as `45 MiB`."""
    if num_bytes < GIB:
        return f"{num_bytes / 2**20:.0f} MiB"
    return f"{num_bytes / GIB:.1f} GiB"
