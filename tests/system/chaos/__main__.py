"""Try faults on whole training runs: ``python tests/system/chaos --faults 8 --seed 1``.

Needs root, for a /tmp and a /dev/shm of each run's own. Fault by fault the results go to the folder
of ``--out``; the same command goes on where it was stopped or where its ``--minutes`` were over. At
the end there is a table. The exit code is 1 where a promise was broken, 3 where faults are left.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import tests

HERE = Path(__file__).resolve()
tests.__path__ = [str(HERE.parents[2]), *tests.__path__]  # another distribution has the name, too

from tests.system.chaos import reference, trial  # noqa: E402
from tests.system.chaos.faults import Chain, chains, drawn  # noqa: E402
from tests.system.chaos.trial import Observation, Run  # noqa: E402

JOURNAL, LAST = "results", "results/last.json"
"""Below the folder of a chain: what was seen, a file for each start."""
SMALL_DISK_MIB = 120
"""Room for three checkpoints of 28 MB and one that is written."""
MAX_LINES = 40
"""On the console of a run that ends; the last ones are its own message."""
OWN = "vapo_verl: "
"""How that message begins."""
TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end of table -->)", re.DOTALL)
"""Where a page has the table."""
LEFT = 3
"""Exit code where faults are left for another sitting."""


class TimeIsOver(Exception):
    """The minutes of this sitting are over; the journal holds what was tried."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=30, help="how many are drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="words of names, such as kill-server,disk")
    parser.add_argument("--chain", type=int, default=4, help="faults that end one run folder's run")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin none later")
    parser.add_argument("--page", type=Path, help="a page to write the table to, as docs/chaos.md")
    parser.add_argument("--list", action="store_true", help="name the faults and do nothing")
    options = parser.parse_args(arguments)
    faults = drawn(options.faults, options.seed, options.only)
    planned = chains(faults, options.chain)
    if options.list:
        for number, chain in enumerate(planned):
            print(f"{number}: {', '.join(fault.name for fault in (*chain.ends, *chain.last))}")
        return 0
    if os.geteuid() != 0:
        parser.error("it needs root, for mounts of each run's own")
    out = options.out.resolve()
    if options.page and not TABLE.search(options.page.read_text()):
        parser.error(f"--page {options.page} has no <!-- table --> to replace")
    if out.is_relative_to("/tmp"):
        parser.error("--out may not be in /tmp: each run has another one")
    end = time.monotonic() + 60 * options.minutes

    def check_time() -> None:
        if time.monotonic() > end:
            raise TimeIsOver

    data = digits(out / "data")
    folders = [out / f"seed_{options.seed}" / f"chain_{n}" for n in range(len(planned))]
    is_complete = True
    try:
        for folder, chain in zip(folders, planned, strict=True):
            if not (folder / LAST).exists():
                try_chain(folder, data, chain, straight_run(out, data, chain.ranks), check_time)
    except TimeIsOver:
        is_complete = False
    finally:
        trial.Trial.end_all()
    observed = [seen for folder in folders for seen in journal(folder)]
    table = as_table(observed)
    (out / "table.md").write_text(table)
    if options.page:
        options.page.write_text(TABLE.sub(lambda _: table, options.page.read_text()))
    print(table)
    broken = [seen for seen in observed if complaints(seen)]
    tried = sum(not seen.fault.startswith("(end") for seen in observed)
    print(f"{tried} of {len(faults)} faults, {len(broken)} with complaints; {out / 'table.md'}")
    return 1 if broken else 0 if is_complete else LEFT


def digits(folder: Path) -> Path:
    """The folder of the digits data, written once."""
    if not (folder / "digits" / "train.parquet").exists():
        from vapo_verl.digits.build import DigitsConfig, write_dataset

        write_dataset(folder / "digits", DigitsConfig(train=128, val=16))
    return folder


def straight_run(out: Path, data: Path, ranks: int) -> Path:
    """The run folder of the reference; made once for each number of ranks, and code."""
    run = Run(out / f"reference_{ranks}", data, ranks)
    code, digest = run.folder / "code.txt", reference.code_digest()
    if not code.exists() or code.read_text() != digest:
        trial.fresh(run.folder)
        say(f"reference on {ranks} rank(s)")
        with run.mounted():
            [seen] = trial.last_start(run, [], 0, "")
        if seen.exit_code != 0:
            raise SystemExit(
                f"the reference failed with {seen.exit_code}: {run.folder / 'start_0.out'}"
            )
        code.write_text(digest)
    return run.run_dir


def try_chain(
    folder: Path, data: Path, chain: Chain, straight: Path, check_time: Callable[[], None]
) -> None:
    """All faults of a chain in one run folder, then a last start to its last step."""
    run, usual_s = Run(folder, data, chain.ranks), reference.usual_seconds(straight)
    has_disk = any(fault.kind == "disk" for fault in chain.ends)
    with run.mounted(SMALL_DISK_MIB if has_disk else 0):
        for number, fault in enumerate(chain.ends):
            path = folder / JOURNAL / f"{number}_{fault.name}.json"
            if path.exists():
                continue
            check_time()
            say(f"{folder.name}: {fault.name}")
            is_last = number == len(chain.ends) - 1
            first_step = 3 if is_last and any(f.phase == "resume" for f in chain.last) else 1
            seen = trial.try_fault(run, fault, number, usual_s, first_step)
            seen.problems += reference.problems(run.run_dir, straight, is_finished=False)
            note([seen], path)
        check_time()
        say(f"{folder.name}: to the end, {', '.join(f.name for f in chain.last) or 'no fault'}")
        last = trial.last_start(run, chain.last, len(chain.ends), f"(end of {folder.name})")
        last[-1].problems = reference.problems(run.run_dir, straight, is_finished=True)
        note(last, folder / LAST)


def note(observed: list[Observation], path: Path) -> None:
    for seen in observed:
        say(f"  {summary(seen)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(seen) for seen in observed], indent=1))


def journal(folder: Path) -> list[Observation]:
    """What was seen in a run folder so far."""
    paths = sorted((folder / JOURNAL).glob("*.json"))
    return [Observation(**seen) for path in paths for seen in json.loads(path.read_text())]


def complaints(seen: Observation) -> list[str]:
    """The promises that were broken."""
    found = [f"run folder: {problem}" for problem in seen.problems]
    if seen.fault.startswith("(end"):
        if seen.exit_code != 0:
            found.append(f"the last start ended with {seen.exit_code}")
    elif seen.note.startswith("not tried"):
        return found
    else:
        limit = trial.NAMED_S + (trial.HANG_S if seen.fault.startswith("stop") else 0)
        if not seen.fault.startswith("kill-driver"):
            if seen.noticed_s is None or seen.noticed_s > limit:
                found.append(f"noticed after {seen.noticed_s} s")
            if seen.is_named is not True:
                found.append("not named")
            if seen.last_lines and not any(line.startswith(OWN) for line in seen.last_lines):
                found.append("the last lines are not the run's own")
        if "not ended" in seen.note and not seen.fault.startswith("second"):
            found.append(f"not ended {trial.GIVE_UP_S:.0f} s after the fault")
        if seen.num_lines > MAX_LINES:
            found.append(f"{seen.num_lines} lines on the console")
        if "no process of the role" in seen.note or "did not come to" in seen.note:
            found.append(seen.note)
    found += [f"left: {name}" for name in (*seen.left_processes, *seen.left_files)]
    return found


def summary(seen: Observation) -> str:
    shown = {k: v for k, v in asdict(seen).items() if k not in ("last_lines", "fault")}
    return ", ".join(f"{name} {value}" for name, value in shown.items() if value not in (None, []))


def as_table(observed: list[Observation]) -> str:
    """A row per fault."""
    head = "| fault | instant | noticed after | named | ends after | exit | lines | complaints |"
    rows = [head, "|" + " --- |" * 8]
    for seen in observed:
        cells = (
            seen.fault,
            seen.instant,
            seconds(seen.noticed_s),
            {True: "yes", False: "no", None: "-"}[seen.is_named],
            seconds(seen.ended_s),
            "-" if seen.exit_code is None else str(seen.exit_code),
            str(seen.num_lines),
            "; ".join(complaints(seen)) or "none",
        )
        rows.append("| " + " | ".join(re.sub(r"[|\n]", " ", cell) for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} s"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(LEFT))  # its run ends with it
    sys.exit(main())
