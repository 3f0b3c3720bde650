"""Wait until every node of a Slurm job has joined its Ray cluster: RAY_ADDRESS, names, timeout.

usage: python wait_for_nodes.py TIMEOUT_S NODE...
"""

from __future__ import annotations

import sys
import time

import ray


def joined() -> set[str]:
    """Names of the nodes that are up; none until the head answers."""
    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError):
            return set()
    return {node["NodeName"] for node in ray.nodes() if node["Alive"]}


def main(timeout_s: float, *names: str) -> None:
    end = time.monotonic() + timeout_s
    missing = set(names)
    while missing := missing - joined():
        if time.monotonic() > end:
            listed = ", ".join(sorted(missing))
            sys.exit(f"no Ray on {listed} after {timeout_s:.0f} s ({len(names)} nodes in the job)")
        time.sleep(1)


if __name__ == "__main__":
    main(float(sys.argv[1]), *sys.argv[2:])
