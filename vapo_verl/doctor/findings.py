"""What a check says, and the one place where a check's own failure becomes a finding."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warning", "error"]
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing a check found."""

    check: str
    """Name of the check, as in docs/doctor.md."""
    status: Status
    """``error``: a run cannot work or will die. ``warning``: it may, or will be slower."""
    found: str
    """What was seen: the key and the value where there is one."""
    fix: str = ""
    """What to do; empty when there is nothing to mend."""

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
    """The findings of one check; what it raises is its last finding.

    A ``ValueError`` is written for the person (key, value and fix in its text). Anything else says
    that the check itself could not be made, which proves nothing good either.
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
                "mend what the message names; if the machine is right, report the check",
            )
        )
    return found


def _from_message(check: str, message: str) -> Finding:
    """The fix stands behind the last semicolon of a message in one line."""
    what, _, fix = message.rpartition("; ")
    if not what or "\n" in message:
        what, fix = message, "mend what the message names"
    return error(check, what, fix)


def gib(num_bytes: float) -> str:
    """Bytes for a person: `12.3 GiB`, small ones as `45 MiB`."""
    if num_bytes < GIB:
        return f"{num_bytes / 2**20:.0f} MiB"
    return f"{num_bytes / GIB:.1f} GiB"
