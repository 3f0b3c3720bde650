"""The interface of a stage: its device, the time that is left, and the record of its cases.

``python -m vapo_verl.gpu_check.case STAGE --seconds S --scratch DIR`` runs one stage. Each case
appends a line of JSON to ``DIR/cases.jsonl`` as it ends, so that a crash keeps the earlier cases.
"""

import argparse
import importlib
import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from vapo_verl.files import atomic_folder
from vapo_verl.gpu_check.results import CaseResult, Figure, Status

CASES_FILE = "cases.jsonl"
CLOSING_S = 8.0
"""Reserved at a stage's end for its engines and its interpreter to shut down."""


class CaseFailed(AssertionError):
    """A case found a fault; the message has the figure and its limit."""


class CaseSkipped(Exception):
    """A case cannot run here; the message says what is missing."""


def require(holds: bool, message: str) -> None:
    """Raises CaseFailed with the message unless `holds`."""
    if not holds:
        raise CaseFailed(message)


class Check:
    """A running stage.

    Args:
        device: ``cuda``, or ``cpu`` for a rehearsal with small sizes.
        scratch: the stage's own folder, deleted with those of the other stages.
        seconds: time limit for all cases of the stage.
    """

    def __init__(self, device: str, scratch: Path, seconds: float) -> None:
        self.device, self.scratch = device, scratch
        self.shared = scratch.parent
        """A folder that all stages of one check share, for what takes time to make."""
        self._end = time.monotonic() + seconds - min(CLOSING_S, seconds / 4)

    @property
    def seconds_left(self) -> float:
        return self._end - time.monotonic()

    def case(
        self, name: str, body: Callable[[], Mapping[str, Figure]], *, needs_s: float = 1.0
    ) -> bool:
        """Run one case and record it; returns whether it passed.

        Args:
            body: returns the figures worth reporting; an exception other than CaseSkipped is a
                failure.
            needs_s: the case is skipped if fewer seconds are left.
        """
        start = time.monotonic()
        figures: Mapping[str, Figure] = {}
        status: Status = "passed"
        message = ""
        if self.seconds_left < needs_s:
            status, message = "skipped", "no time left"
        else:
            try:
                figures = body()
            except CaseSkipped as reason:
                status, message = "skipped", str(reason)
            except CaseFailed as problem:
                status, message = "failed", str(problem)
            except Exception as problem:  # of any library under test: it is the case's result
                traceback.print_exc()
                status, message = "failed", f"{type(problem).__name__}: {problem}"
        self.record(
            CaseResult(
                name=name,
                status=status,
                seconds=round(time.monotonic() - start, 2),
                message=message,
                figures=figures,
            )
        )
        return status == "passed"

    def random_model(
        self, size: str, layers: int | None = None, vision_layers: int | None = None
    ) -> Path:
        """Folder of a random model (`vapo_verl.digits.model.random_models`); made once a check."""
        from vapo_verl.digits.model.random_models import make_random_model

        named = "_".join(str(part) for part in (size, layers, vision_layers) if part)
        folder = self.shared / f"model_{named}"
        if not folder.is_dir():
            with atomic_folder(folder) as temporary:
                make_random_model(temporary, size, layers=layers, vision_layers=vision_layers)
        return folder

    def record(self, result: CaseResult) -> None:
        """Append a case that was run elsewhere, such as in a worker process."""
        with (self.scratch / CASES_FILE).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(result)) + "\n")


def read_cases(scratch: Path) -> list[CaseResult]:
    """The cases recorded so far; the last line may be incomplete."""
    file = scratch / CASES_FILE
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    return [CaseResult(**json.loads(line)) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vapo_verl.gpu_check.case")
    parser.add_argument("stage")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    options = parser.parse_args()
    check = Check(options.device, options.scratch, options.seconds)
    importlib.import_module(f"vapo_verl.gpu_check.{options.stage}").run(check)


if __name__ == "__main__":
    main()
