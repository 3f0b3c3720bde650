"""Memory and work per prompt of short training runs with large images.

    python benchmarks/counted_run.py [--baseline CHECKOUT] [--steps 2] [--pixels 1000000]
        [--out benchmarks/results/counted_run.json]

Runs the smoke recipe on the digits world with enlarged images in this checkout. With --baseline it
first runs another checkout of the project, such as an older release, in the same environment. Both
get the same data, model, seed and number of steps. Measured are:

- Memory: the proportional set size of all processes of the run, sampled about once a second. Its
  peak, and the slope of the peaks of the steps (least squares, from the third step on).
- Work per prompt in the steps (benchmarks/counting): images processed, hashes and encoder runs,
  bytes of TransferQueue's messages; lag of event loops.
- Which columns of the stored samples and which metrics differ between the two.

Prints a table; `--out` writes JSON. With `--check FILE` it exits with 1 if a count or the bytes of
this checkout are more than 5 % above those of FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.smoke_cost import MARK, marked_processes, proportional_kib
from vapo_verl.digits.build import DigitsConfig, write_dataset
from vapo_verl.digits.model import model_dir
from vapo_verl.run_folder.rollouts import rollout_file

HERE = Path(__file__).resolve().parent
TILE = 28
PROMPTS, GROUP = 2, 4
"""Prompts of a step, and responses to each."""
LOOPS = ("AgentLoopWorker", "VapoAgentLoopWorker")
"""Beginnings of the names of agent-loop actors."""
KINDS = ("processor", "hash", "encoder", "sent")
"""Kinds of benchmarks/counting that every run has."""
TOLERANCE = 1.05
COMPARED = ("response_ids", "reward", "advantages", "rollout_log_probs", "old_log_probs")
"""Compared columns of the stored samples, beside `p_yes` of their anchors."""
LIMIT_S = 1500
"""Time limit of a run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 1 if a count or a size grew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--baseline", type=Path, help="another checkout of the project")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--pixels", type=int, default=1_000_000, help="of an image, about")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--check", type=Path, help="JSON file whose counts and bytes are the limit")
    args = parser.parse_args(argv)
    result = {
        "command": " ".join(["python benchmarks/counted_run.py", *(argv or sys.argv[1:])]),
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        **measure(args.baseline, args.steps, args.pixels),
    }
    show(result)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return check(result, json.loads(args.check.read_text())) if args.check else 0


def measure(baseline: Path | None, steps: int, pixels: int) -> dict[str, Any]:
    """Run the other checkout, if any, then this one."""
    checkouts = {"ours": HERE.parent}
    if baseline:
        checkouts = {"baseline": baseline.resolve(), **checkouts}
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder), pixels, num_rows=PROMPTS * steps)
        model = write_model(Path(folder), pixels)
        runs = {
            name: run(checkout, Path(folder) / name, data, model, steps, pixels)
            for name, checkout in checkouts.items()
        }
    result = {
        "commits": {name: commit_of(checkout) for name, checkout in checkouts.items()},
        "steps": steps,
        "prompts_per_step": PROMPTS,
        "responses_per_prompt": GROUP,
        "pixels": pixels,
        "runs": runs,
    }
    compared = [(found.pop("rollouts"), found.pop("metrics")) for found in runs.values()]
    if baseline:
        result["differences"] = differences(*compared)
    return result


def write_data(folder: Path, pixels: int, num_rows: int) -> dict[str, Path]:
    """Rows of the digits world with square images of about `pixels` pixels, by split."""
    side = side_of(pixels)
    paths = write_dataset(folder / "digits", DigitsConfig(train=num_rows, val=PROMPTS, test=0))
    for path in paths.values():
        table = pq.read_table(path)
        rows = table.to_pylist()
        for row in rows:
            row["images"] = [{**image, "bytes": enlarged(image, side)} for image in row["images"]]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    return paths


def side_of(pixels: int) -> int:
    """Side of a square of about `pixels` pixels, a multiple of 28."""
    return max(round(pixels**0.5 / TILE), 1) * TILE


def enlarged(image: Mapping[str, Any], side: int) -> bytes:
    """A PNG of `side` x `side` pixels."""
    buffer = BytesIO()
    Image.open(BytesIO(image["bytes"])).convert("RGB").resize((side, side), 0).save(buffer, "PNG")
    return buffer.getvalue()


def write_model(folder: Path, pixels: int) -> Path:
    """The packaged model with an image processor that does not shrink these images."""
    copy = Path(shutil.copytree(model_dir(), folder / "model"))
    path = copy / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"]["size"]["longest_edge"] = side_of(pixels) ** 2
    path.write_text(json.dumps(settings))
    return copy


def run(
    checkout: Path,
    folder: Path,
    data: Mapping[str, Path],
    model: Path,
    steps: int,
    pixels: int,
) -> dict[str, Any]:
    """Train in a checkout; returns the measurements."""
    counts, run_dir, mark = folder / "counts", folder / "run", uuid.uuid4().hex
    counts.mkdir(parents=True)
    overrides = {
        "data.train_files": data["train"],
        "data.val_files": data["val"],
        "data.train_batch_size": PROMPTS,
        "data.max_prompt_length": 2048,
        "data.max_response_length": 48,
        "data.max_pixels": side_of(pixels) ** 2,
        "actor_rollout_ref.model.path": model,
        "actor_rollout_ref.actor.ppo_mini_batch_size": PROMPTS,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": GROUP,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": GROUP,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": GROUP,
        "actor_rollout_ref.rollout.n": GROUP,
        "actor_rollout_ref.rollout.max_model_len": 2560,
        "actor_rollout_ref.rollout.max_num_batched_tokens": 4096,
        "vapo.anchors.gate": "always",
        "vapo.anchors.self_test_rows": 0,  # it would encode the images of the first step
        "trainer.total_training_steps": steps,
        "trainer.total_epochs": 1,
        "trainer.val_before_train": "false",
        "trainer.test_freq": -1,
        "trainer.save_freq": -1,
        "trainer.default_local_dir": run_dir,
    }
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "vapo_verl.main", "+recipe=smoke"),
            *(f"{name}={value}" for name, value in overrides.items()),
        ],
        cwd=checkout,
        env={
            **os.environ,
            "PYTHONPATH": f"{checkout}:{HERE / 'counting'}",
            "RAY_ADDRESS": "local",
            "VAPO_COUNTS": str(counts),
            MARK: mark,
        },
        stdout=(folder / "log.txt").open("w"),
        stderr=subprocess.STDOUT,
    )
    samples, ends = sampled(process, mark, run_dir / "metrics.jsonl")
    if process.returncode or len(ends) < steps:
        raise SystemExit(f"{checkout}: the run failed:\n{(folder / 'log.txt').read_text()[-4000:]}")
    events = read_events(counts)
    return {
        "memory": memory(samples, ends),
        "per_prompt": per_prompt(events, ends),
        "lag_ms": lags(events, ends),
        "rollouts": rollouts(run_dir, steps),
        "metrics": metrics_of(run_dir),
    }


def sampled(
    process: subprocess.Popen[bytes], mark: str, metrics: Path
) -> tuple[list[tuple[float, dict[str, int]]], list[float]]:
    """(time, KiB by kind of process) about once a second, and the times at which steps ended."""
    samples: list[tuple[float, dict[str, int]]] = []
    ends: list[float] = []
    deadline = time.monotonic() + LIMIT_S
    try:
        while process.poll() is None and time.monotonic() < deadline:
            kib: Counter[str] = Counter()
            for pid in marked_processes(mark):
                kib[kind_of(pid)] += proportional_kib(pid)
            samples.append((time.time(), dict(kib)))
            ends += [time.time()] * (number_of_steps(metrics) - len(ends))
            time.sleep(1)
    finally:
        process.terminate()  # no effect if it has ended
        process.wait()
    ends += [time.time()] * (number_of_steps(metrics) - len(ends))
    return samples, ends


def kind_of(pid: Path) -> str:
    try:
        title = (pid / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    except OSError:
        return "other"
    return title.rpartition("::")[2].split(".")[0] if "::" in title else "other"


def number_of_steps(metrics: Path) -> int:
    if not metrics.is_file():
        return 0
    lines = metrics.read_text().splitlines()
    return sum('"step": 0' not in line and line.endswith("}") for line in lines)


def memory(
    samples: Sequence[tuple[float, Mapping[str, int]]], ends: Sequence[float]
) -> dict[str, Any]:
    """GiB: the peak, each step's peak in total and by kind of process, and the slopes."""
    kinds = sorted({kind for _, kib in samples for kind in kib})
    peaks: list[float] = []
    by_kind: dict[str, list[float]] = {kind: [] for kind in kinds}
    for start, end in zip([samples[0][0], *ends], ends, strict=False):
        inside = [kib for at, kib in samples if start <= at <= end] or [samples[-1][1]]
        peaks.append(max(sum(kib.values()) for kib in inside) / 2**20)
        for kind in kinds:
            by_kind[kind].append(max(kib.get(kind, 0) for kib in inside) / 2**20)
    found: dict[str, Any] = {
        "peak_gib": round(max(sum(kib.values()) for _, kib in samples) / 2**20, 3),
        "peaks_of_steps_gib": [round(value, 3) for value in peaks],
        "peaks_of_processes_gib": {
            kind: [round(values[0], 3), round(values[-1], 3)] for kind, values in by_kind.items()
        },
    }
    if len(peaks) >= 5:
        found["slope_mib_per_step"] = round(slope(peaks[2:]) * 1024, 2)
        found["slopes_of_processes_mib_per_step"] = {
            kind: round(slope(values[2:]) * 1024, 2) for kind, values in by_kind.items()
        }
    return found


def slope(values: Sequence[float]) -> float:
    """Slope of the least-squares line through values at 0, 1, 2, ..."""
    return float(np.polyfit(np.arange(len(values)), values, 1)[0])


Event = tuple[float, str, str, float]


def read_events(counts: Path) -> list[Event]:
    """Time, role, kind and number of all processes."""
    lines = (line.split() for path in counts.iterdir() for line in path.read_text().splitlines())
    return [(float(at), role, kind, float(number)) for at, role, kind, number in lines]


def start_of(events: Sequence[Event]) -> float:
    """Start of the first response; the agent loops' lag is measured from then on."""
    return min(at for at, role, kind, _ in events if kind == "lag" and role.startswith(LOOPS))


def per_prompt(events: Sequence[Event], ends: Sequence[float]) -> dict[str, float]:
    """Counts by kind and role, and bytes, for each prompt.

    Raises:
        ValueError: nothing of a kind was counted, because upstream has renamed the function.
    """
    sums: Counter[str] = Counter()
    start = start_of(events)
    for at, role, kind, number in events:
        if start <= at <= ends[-1] and kind != "lag":
            sums[kind if kind == "sent" else f"{kind} {role}"] += number
    if missing := {*KINDS} - {name.split()[0] for name in sums}:
        raise ValueError(
            f"nothing counted of {sorted(missing)}: adapt HOOKS of benchmarks/counting"
        )
    prompts = PROMPTS * len(ends)
    return {name: round(total / prompts, 3) for name, total in sorted(sums.items())}


def lags(events: Sequence[Event], ends: Sequence[float]) -> dict[str, dict[str, float]]:
    """p50, p99 and maximum by role, over the steps."""
    start = start_of(events)
    found: dict[str, list[float]] = {}
    for at, role, kind, number in events:
        if kind == "lag" and start <= at <= ends[-1]:
            found.setdefault(role, []).append(number)
    return {
        role: {
            "p50": round(float(np.percentile(values, 50)), 2),
            "p99": round(float(np.percentile(values, 99)), 2),
            "max": round(max(values), 2),
        }
        for role, values in sorted(found.items())
    }


def rollouts(run_dir: Path, steps: int) -> list[dict[str, Any]]:
    """The stored samples of each step by column, sorted by prompt and sample."""
    found = []
    for step in range(1, steps + 1):
        path = rollout_file(run_dir, step)
        rows = sorted(pq.read_table(path).to_pylist(), key=lambda row: (row["uid"], row["sample"]))
        columns = {name: [row[name] for row in rows] for name in COMPARED}
        p_yes = [[anchor["p_yes"] for anchor in row["anchors"] or ()] for row in rows]
        found.append({**columns, "p_yes": p_yes})
    return found


def metrics_of(run_dir: Path) -> list[dict[str, float]]:
    """Metrics of each step, without times and memory, which differ between any two runs."""
    skipped = ("timing", "perf/", "vapo/memory", "_lag_ms", "prepare_s", "_s")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            name: value
            for name, value in line["data"].items()
            if not any(part in name for part in skipped[:-1]) and not name.endswith(skipped[-1])
        }
        for line in lines
        if line["step"] > 0
    ]


def commit_of(checkout: Path) -> str:
    done = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def show(result: Mapping[str, Any]) -> None:
    """Memory, counts and lag of each run, and what differs between them."""
    for name, run in result["runs"].items():
        memory = run["memory"]
        print(f"{name} ({result['commits'][name]})")
        print(f"  peak {memory['peak_gib']} GiB; steps {memory['peaks_of_steps_gib']}")
        if "slope_mib_per_step" in memory:
            print(f"  slope {memory['slope_mib_per_step']} MiB a step from the third on")
        for kind, number in run["per_prompt"].items():
            print(f"  for a prompt: {kind:40s} {number:>14,.3f}")
        for role, lag in run["lag_ms"].items():
            print(f"  event loop of {role}, ms late: {lag}")
    print("\n".join(result.get("differences", ())))


Compared = tuple[list[dict[str, Any]], list[dict[str, float]]]


def differences(one: Compared, other: Compared) -> list[str]:
    """What differs between the stored samples and the metrics of two runs."""
    found = []
    for step, (a, b) in enumerate(zip(one[0], other[0], strict=True), start=1):
        found += [f"step {step}: {name} differ" for name in a if a[name] != b[name]]
    for step, (a, b) in enumerate(zip(one[1], other[1], strict=True), start=1):
        found += [
            f"step {step}: {name}: {a[name]!r} and {b[name]!r}"
            for name in sorted(a.keys() & b.keys())
            if a[name] != b[name] and not (a[name] != a[name] and b[name] != b[name])
        ]
    return found or ["stored samples and metrics are equal"]


def check(result: Mapping[str, Any], limit: Mapping[str, Any]) -> int:
    """1 where a count or the bytes of a prompt are more than 5 % above those of ``limit``."""
    return report_growth(
        *({"for a prompt": r["runs"]["ours"]["per_prompt"]} for r in (result, limit))
    )


def report_growth(now: Mapping[str, Any], then: Mapping[str, Any]) -> int:
    """Print the nested numbers that grew by more than 5 %; returns 1 if there are any, else 0.

    Names that are not in both are left out, and those with `verl`, which are not ours.

    Raises:
        ValueError: there is no common name, so that nothing would be compared.
    """
    limits = dict(flat(then))
    values = {name: value for name, value in flat(now) if name in limits and "verl" not in name}
    if not values:
        raise ValueError("--check: the file has none of these counts; give one of this benchmark")
    grown = [
        f"{name}: {limits[name]:,} -> {value:,}"
        for name, value in values.items()
        if value > TOLERANCE * limits[name]
    ]
    print("\n".join(["grew by more than 5 %:", *grown] if grown else ["no count or size grew"]))
    return 1 if grown else 0


def flat(values: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Nested numbers by their path."""
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        path = f"{prefix}{name}"
        found += flat(value, f"{path}.") if isinstance(value, Mapping) else [(path, value)]
    return found


if __name__ == "__main__":
    sys.exit(main())
