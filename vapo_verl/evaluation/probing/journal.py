"""Results of one command in one folder: its settings, and one line for each finished row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from vapo_verl.files import FolderLock, append_line, atomic_write
from vapo_verl.run_folder import RunError

SETTINGS_FILE = "settings.json"
ROWS_FILE = "rows.jsonl"
SUMMARY_FILE = "summary.json"
PAGE_FILE = "page.html"


class Journal:
    """Append-only `rows.jsonl`; a kill costs at most the line that was being written.

    Args:
        folder: made if it is not there; locked while the journal is open.
        settings: all that a row's result depends on. A folder that was begun with other settings
            is refused.
        defaults: values for settings missing in the folder, as in one of an older release. Other
            names than those of settings are ignored.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        defaults: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.folder = folder
        self._settings = json.loads(json.dumps(settings))
        known = {name: value for name, value in defaults.items() if name in settings}
        self._defaults = json.loads(json.dumps(known))
        self._open = ExitStack()
        self._file: IO[str] | None = None

    def __enter__(self) -> Journal:
        """Raises RunError on other settings, FileError while another process writes here."""
        with ExitStack() as opened:
            opened.enter_context(FolderLock(self.folder))
            self._check_settings()
            path = self.folder / ROWS_FILE
            _drop_unfinished_line(path)
            self._file = opened.enter_context(path.open("a", encoding="utf-8"))
            self._open = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def append(self, record: Mapping[str, Any]) -> None:
        """Store one row; on return its line is on the disk."""
        assert self._file is not None
        append_line(self._file, json.dumps(record, ensure_ascii=False, allow_nan=False))

    def finished(self) -> set[int]:
        """Numbers of the finished rows."""
        return {record["row"] for record in read_records(self.folder)}

    def _check_settings(self) -> None:
        path = self.folder / SETTINGS_FILE
        if not path.exists():
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(self._settings, indent=2) + "\n")
            return
        before = {**self._defaults, **read_settings(self.folder)}
        differences = [
            f"{key} was {before.get(key)!r}, is {self._settings.get(key)!r}"
            for key in sorted(before.keys() | self._settings.keys())
            if before.get(key) != self._settings.get(key)
        ]
        if differences:
            raise RunError(
                f"{self.folder} was begun with other settings: {'; '.join(differences)}. Give the "
                "earlier ones to resume, another --out, or delete the folder"
            )


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The finished rows by row number; none without a file. An unfinished last line is left out.

    Raises:
        RunError: any other line is not a record.
    """
    path = folder / ROWS_FILE
    if not path.exists():
        return []
    records: dict[int, dict[str, Any]] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                break
            try:
                record = json.loads(line)
                records[int(record["row"])] = record
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(
                    f"{path}:{number}: not a record ({error}); delete this line: its row is then "
                    "done again"
                ) from error
    return [records[row] for row in sorted(records)]


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings that a folder was begun with; empty without a file.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / SETTINGS_FILE
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}); restore it, or delete the folder") from error


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary.json` atomically."""
    with atomic_write(folder / SUMMARY_FILE) as temporary:
        temporary.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")


def _drop_unfinished_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        with path.open("r+b") as file:
            file.truncate(complete)
