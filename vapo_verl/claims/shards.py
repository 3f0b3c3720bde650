"""Claims on disk: folders of append-only JSON-lines shards that survive a kill at any moment.

A process writes its own new shard, one flushed and fsynced line per finished image. A killed
process leaves at worst an unfinished last line; its image counts as not stored.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from vapo_verl.data.claims_column import CLAIMS_PER_IMAGE, Claim, read_claims
from vapo_verl.data.errors import BadCell, FileError, shown
from vapo_verl.files import FolderLock, append_line

_TYPES = {"image_key": str, "model": str, "num_wanted": int, "attempts": int}
_ONE_LINE = "put the claims of an image into one line, or delete one of the two"
_DAMAGED = "restore the shard from a copy, or delete this line: its image is then asked for again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens and requests, as the endpoint counted them; 0 where it did not."""

    num_requests: int = 0
    """Answered requests; failed ones are not counted."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            num_requests=self.num_requests + other.num_requests,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteCount:
    """The votes of `check` on one claim."""

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
    """The model that made the claims."""
    num_wanted: int = CLAIMS_PER_IMAGE
    """Claims that were asked for."""
    attempts: int = 1
    """Answers read until the claims were complete."""
    usage: Usage = field(default_factory=Usage)
    """Tokens of making these claims."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Candidates turned down, by reason: see `parse_answer` and `add_candidates`."""
    vote_counts: tuple[VoteCount, ...] | None = None
    """Set by `check`: one per checked claim, including dropped ones. None: not checked."""
    check_model: str | None = None
    """The model that voted."""
    check_usage: Usage = field(default_factory=Usage)
    """Tokens of checking."""

    @property
    def status(self) -> str:
        """ "full", or "short" when there are fewer claims than were asked for."""
        return "full" if len(self.claims) >= self.num_wanted else "short"

    def to_json(self) -> str:
        """One line, without its newline; `status` is included for other readers."""
        fields = asdict(self)  # the Mapping of reasons comes back as the dict it is
        return json.dumps({**fields, "status": self.status}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> "ClaimRecord":
        """The record of a line; only ``image_key``, ``claims`` and ``model`` are needed.

        Raises ValueError, TypeError or KeyError when the line is no record. A claim that is not
        valid in a row raises a ValueError that names image and claim.
        """
        fields: dict[str, Any] = json.loads(line)
        if not isinstance(fields, dict):
            raise ValueError(f"the line is {shown(fields)}, want an object")
        for name, kind in _TYPES.items():
            if name in fields and not isinstance(fields[name], kind):
                raise ValueError(f"{name} is {shown(fields[name])}, want {kind.__name__}")
        fields.pop("status", None)
        if "verdicts" in fields:  # the name in older shards
            fields["vote_counts"] = fields.pop("verdicts")
        votes = fields.get("vote_counts")
        return cls(
            **fields
            | {
                "claims": _claims(fields["claims"], fields["image_key"]),
                "usage": Usage(**fields.get("usage", {})),
                "check_usage": Usage(**fields.get("check_usage", {})),
                "vote_counts": None if votes is None else tuple(VoteCount(**v) for v in votes),
            }
        )


def _claims(cell: object, image_key: str) -> tuple[Claim, ...]:
    try:
        return read_claims(cell)
    except BadCell as bad:
        raise ValueError(f"image {image_key}: {bad.found}") from bad


def shard_paths(folder: Path) -> list[Path]:
    """The shards of a folder in the order they were begun; none when there is no such folder."""
    return sorted(folder.glob("shard-*.jsonl"))


def read_records(folder: Path) -> Iterator[ClaimRecord]:
    """Stream the records of all shards, in the order they were written.

    A stored image is not asked for again, so that the runs of a folder write unique keys. A folder
    without shards has no records.

    Raises:
        FileError: a line is not a record; the message names file and line. A last line without
            newline, left by a killed process, is skipped.
    """
    for path in shard_paths(folder):
        yield from (record for _, record in read_shard(path))


def read_shard(path: Path) -> Iterator[tuple[int, ClaimRecord]]:
    """(byte offset of its line, record) of every record of one shard; errors as `read_records`."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield offset, ClaimRecord.from_json(line)
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise FileError(f"{path}:{number}: not a record ({error}); {_DAMAGED}") from error
            offset += len(line)


def unique_records(folder: Path) -> Iterator[tuple[Path, int, int, ClaimRecord]]:
    """(shard, line from 1, its byte offset, record) of all records, for readers by the image.

    Raises:
        FileError: as `read_records`; or an image has two lines, as when other programs wrote them
            or folders were put together. The runs of one folder store an image once.
    """
    seen: dict[str, tuple[Path, int]] = {}
    for path in shard_paths(folder):
        for number, (offset, record) in enumerate(read_shard(path), start=1):
            first = seen.setdefault(record.image_key, (path, number))
            if first != (path, number):
                found = f"image {record.image_key} is also in {first[0].name}:{first[1]}"
                raise FileError(f"{path}:{number}: {found}; {_ONE_LINE}")
            yield path, number, offset, record


class ShardWriter:
    """Appends records to a new shard of `folder`, which it creates, and locks while it is open.

    The first record creates the shard, so that a run with nothing to do leaves no file.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._open = ExitStack()
        self._file: IO[str] | None = None

    def __enter__(self) -> "ShardWriter":
        self._open.enter_context(FolderLock(self._folder))
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def write(self, record: ClaimRecord) -> None:
        """Store the record of one image; on return the line is on disk."""
        if self._file is None:
            self._file = self._open.enter_context(self._new_shard())
        append_line(self._file, record.to_json())

    def _new_shard(self) -> IO[str]:
        paths = shard_paths(self._folder)
        number = int(paths[-1].stem.removeprefix("shard-")) + 1 if paths else 0
        file = (self._folder / f"shard-{number:05d}.jsonl").open("x", encoding="utf-8")
        folder = os.open(self._folder, os.O_RDONLY)  # the new name must reach the disk as well
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return file


class RecordIndex:
    """Image key -> place of its line: some hundred bytes per image."""

    def __init__(self, folder: Path):
        """Read all shards once.

        Raises:
            FileError: no records there, a damaged line, or two of one image.
        """
        self._places: dict[str, tuple[Path, int]] = {
            record.image_key: (path, offset) for path, _, offset, record in unique_records(folder)
        }
        if not self._places:
            raise FileError(f"CLAIMS_DIR: {folder} holds no records; give the --out of generate")

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __getitem__(self, key: str) -> ClaimRecord:
        path, offset = self._places[key]
        with path.open("rb") as file:
            file.seek(offset)
            return ClaimRecord.from_json(file.readline())
