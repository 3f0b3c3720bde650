"""Try faults on whole training runs: ``python tests/system/chaos --faults 8 --seed 1``.

Needs root, for a /tmp and a /dev/shm of each run's own. Case by case the results go to the folder
of ``--out``; the same command goes on where it was stopped. At the end there is a table, and the
exit code is 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import tests

HERE = Path(__file__).resolve()
tests.__path__ = [str(HERE.parents[2]), *tests.__path__]  # another distribution has the name, too

from tests.system.chaos import reference, trial  # noqa: E402
from tests.system.chaos.faults import Fault, chains, drawn  # noqa: E402
from tests.system.chaos.trial import Observation, Run, Trial  # noqa: E402

SMALL_DISK_MIB = 120
"""Room for three checkpoints of 28 MB and one that is written."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=30, help="how many are drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="words of names, such as kill-server,disk")
    parser.add_argument("--chain", type=int, default=3, help="faults in one run folder")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--list", action="store_true", help="name the faults and do nothing")
    options = parser.parse_args(arguments)
    faults = drawn(options.faults, options.seed, options.only)
    planned = chains(faults, options.chain)
    if options.list:
        for number, chain in enumerate(planned):
            print(f"{number}: {', '.join(fault.name for fault in chain)}")
        return 0
    if os.geteuid() != 0:
        parser.error("it needs root, for mounts of each run's own")
    out = options.out.resolve()
    if out.is_relative_to("/tmp"):
        parser.error("--out may not be in /tmp: each run has another one")
    data = digits(out / "data")
    observed: list[Observation] = []
    for number, chain in enumerate(planned):
        straight = straight_run(out, data, chain[0].ranks)
        folder = out / f"seed_{options.seed}" / f"chain_{number}"
        observed += try_chain(folder, data, chain, straight)
    table = as_table(observed)
    (out / "table.md").write_text(table)
    print(table)
    broken = [seen for seen in observed if complaints(seen)]
    print(f"{len(observed)} observations, {len(broken)} with complaints; {out / 'table.md'}")
    return 1 if broken else 0


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
            status = finish(run, 0).process.returncode
        if status != 0:
            raise SystemExit(f"the reference failed with {status}: {run.folder / 'start_0.out'}")
        code.write_text(digest)
    return run.run_dir


def finish(run: Run, number: int) -> Trial:
    """One start without a fault, to its end."""
    watched = Trial(run, number)
    watched.wait(lambda: False, 1500, every_s=0.5)
    if watched.process.poll() is None:
        watched.kill_all()
    return watched


def try_chain(folder: Path, data: Path, chain: list[Fault], straight: Path) -> list[Observation]:
    """All faults of a chain in one run folder, then a last start to the end."""
    run, usual_s = Run(folder, data, chain[0].ranks), reference.usual_seconds(straight)
    has_disk = any(fault.kind == "disk" for fault in chain)
    results = folder / "results"
    observed = []
    if has_disk and not (results / "finish.json").exists():
        trial.fresh(folder)  # the small disk of a stopped harness is gone
    todo = not (results / "finish.json").exists()
    with run.mounted(SMALL_DISK_MIB if has_disk else 0) if todo else nullcontext():
        for number, fault in enumerate(chain):
            path = results / f"{number}_{fault.name}.json"
            if not path.exists():
                say(f"{folder.name}: {fault.name}")
                needs_two = any(later.phase == "resume" for later in chain[number + 1 :])
                seen = trial.try_fault(run, fault, number, usual_s, 3 if needs_two else 1)
                seen.problems += reference.problems(run.run_dir, straight, is_finished=False)
                trial.save(seen, path)
                say(f"  {summary(seen)}")
            observed.append(trial.load(path))
        path = results / "finish.json"
        if not path.exists():
            say(f"{folder.name}: to the end")
            seen = Observation(fault=f"(end of {folder.name})", instant="no fault")
            watched = finish(run, len(chain))
            seen.exit_code = watched.process.returncode
            seen.last_lines = watched.console()[-12:]
            seen.problems = reference.problems(run.run_dir, straight, is_finished=True)
            seen.left_processes, seen.left_files = watched.left_processes(), watched.left_files()
            trial.save(seen, path)
            say(f"  {summary(seen)}")
        observed.append(trial.load(path))
    return observed


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
        if "not ended" in seen.note and not seen.fault.startswith("second"):
            found.append(f"not ended {trial.GIVE_UP_S:.0f} s after the fault")
        if seen.num_lines > 200:
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
    sys.exit(main())
