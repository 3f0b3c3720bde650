"""Cost of watching a run: CPU time of the monitor's looks and of the heartbeats.

    python -m vapo_verl.main +recipe=smoke &
    python benchmarks/liveness.py $! --out benchmarks/results/liveness.json

Looks repeatedly at the processes of a training run, as its monitor does, and counts the heartbeats
meanwhile. The cost is CPU time, which other work on the machine hardly changes. Prints one JSON
line.
"""

import argparse
import json
import re
import tempfile
import time
from pathlib import Path

import psutil

from vapo_verl import heartbeat
from vapo_verl.trainer.liveness import INTERVAL_S, ROLLOUT, HangDetector, Member
from vapo_verl.trainer.node_watch import NodeWatch

PAUSE_S = 0.05
"""Pause between two looks; a run's monitor waits `INTERVAL_S`."""
WATCHED = re.compile(r"^(ray::(?!VapoTaskRunner|IDLE)\w|VLLM::)")
"""Titles of the processes that a monitor watches."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("driver", type=int, help="pid of the training command")
    parser.add_argument("--looks", type=int, default=200)
    parser.add_argument("--beats", type=int, default=200_000)
    parser.add_argument("--out", type=Path, help="a file for the result")
    arguments = parser.parse_args()
    members = processes(arguments.driver)
    watch = NodeWatch(session_of(members).parent)
    result = {
        "benchmark": "liveness",
        "num_processes": len(members),
        **looks(watch, members, arguments.looks),
        "beat_us": beat_us(arguments.beats),
    }
    result["monitor_fraction"] = result["look_ms"] / 1e3 / INTERVAL_S
    result["beats_fraction"] = result["beats_per_s"] * result["beat_us"] / 1e6
    line = json.dumps(result)
    print(line)
    if arguments.out:
        arguments.out.write_text(line + "\n")


def processes(driver: int) -> list[Member]:
    """The watched processes below a training command."""
    children = psutil.Process(driver).children(recursive=True)
    titles = {child.pid: " ".join(child.cmdline()) for child in children}
    watched = {pid: title for pid, title in titles.items() if WATCHED.match(title)}
    members = [Member(role=title, pid=pid, node="") for pid, title in watched.items()]
    if not members:
        raise SystemExit(f"no process of a run below pid {driver}: wait until it trains")
    return members


def session_of(members: list[Member]) -> Path:
    """The folder of heartbeats that these processes have mapped."""
    for member in members:
        for mapped in psutil.Process(member.pid).memory_maps():
            if Path(mapped.path).parent.name == heartbeat.FOLDER:
                return Path(mapped.path).parent
    raise SystemExit("the processes write no heartbeats")


def looks(watch: NodeWatch, members: list[Member], number: int) -> dict[str, float]:
    """CPU time of a look and its evaluation, and the heartbeats per second meanwhile."""
    detector, pids = HangDetector(300.0), [member.pid for member in members]
    first, begun, cpu = watch.look(pids), time.monotonic(), time.process_time()
    for _ in range(number):
        seen = watch.look(pids)
        detector.judge(time.monotonic(), ROLLOUT, dict(zip(members, seen.values(), strict=True)))
        time.sleep(PAUSE_S)
    cpu_s, wall_s = time.process_time() - cpu, time.monotonic() - begun
    beats = sum(seen[pid].beats - first[pid].beats for pid in pids)
    return {"look_ms": 1e3 * cpu_s / number, "wall_s": wall_s, "beats_per_s": beats / wall_s}


def beat_us(number: int) -> float:
    """CPU time of a heartbeat."""
    with tempfile.TemporaryDirectory() as folder:
        heartbeat.start(Path(folder))
        begun = time.process_time()
        for n in range(number):
            heartbeat.beat("a micro-batch", n)
        return 1e6 * (time.process_time() - begun) / number


if __name__ == "__main__":
    main()
