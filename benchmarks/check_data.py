"""Time and peak memory of the checks of data files before a run, at two numbers of rows.

    python benchmarks/check_data.py [--num-rows 9000 36000] [--embedded]

Every row has its own JPEG file of 448 x 448 pixels, some 60 KB. The files are hard links to 64
images, so the disk's time to find as many files is not measured. With --embedded the images are
in the parquet file. Each check runs in a separate process, whose peak resident memory
shows whether memory grows with the rows. Prints a table and one JSON line.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NUM_IMAGES, SIDE = 64, 448
ROWS_PER_GROUP = 200
BATCH = 512
MAX_PROMPT_LENGTH = 4096


def main() -> None:
    arguments = parse()
    if arguments.make:
        return make_files(arguments.folder, arguments.make, embedded=arguments.embedded)
    if arguments.check:
        return check(arguments.folder)
    results = [measured(num_rows, arguments.embedded) for num_rows in arguments.num_rows]
    for result in results:
        print("{num_rows:>7} rows  {wall_s:6.1f} s  CPU {cpu_s:6.1f} s".format(**result), end="")
        print("  {rows_per_cpu_s:6.0f} rows/CPU s  peak {peak_mib:.0f} MiB".format(**result))
    print(json.dumps({"benchmark": "check_data", "results": results}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-rows", type=int, nargs="+", default=[9_000, 36_000])
    parser.add_argument("--embedded", action="store_true", help="images in the parquet file")
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(num_rows: int, embedded: bool) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        # This process stays small: a child's peak memory starts at that of its parent.
        itself(folder, f"--make={num_rows}", *(["--embedded"] if embedded else []))
        result = json.loads(itself(folder, "--check").splitlines()[-1])
    return {"num_rows": num_rows, "embedded": embedded, **result}


def itself(folder: str, *options: str) -> str:
    command = [sys.executable, __file__, f"--folder={folder}", *options]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def check(folder: Path) -> None:
    """A run's checks of a training file and of a validation file."""
    from vapo_verl.data.cells import RowRules
    from vapo_verl.data.run_files import RunData, check_run_files
    from vapo_verl.digits.model import model_dir

    data = RunData(
        files={"train_files": [folder / "train.parquet"], "val_files": [folder / "val.parquet"]},
        needed={"train_files": (BATCH, f"data.train_batch_size={BATCH}"), "val_files": (1, "")},
        max_samples={"train_files": -1, "val_files": -1},
        rules=RowRules(),
        min_claims=20,
        model=str(model_dir()),
        max_prompt_length=MAX_PROMPT_LENGTH,
        filters_long=True,
    )
    start_s = time.monotonic()
    for line in check_run_files(data):
        print(line)
    wall_s = time.monotonic() - start_s
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = used.ru_utime + used.ru_stime
    with (folder / "rows").open() as file:
        rows_per_cpu_s = round(int(file.read()) / cpu_s)
    values = {"wall_s": round(wall_s, 1), "cpu_s": round(cpu_s, 1)}
    values |= {"rows_per_cpu_s": rows_per_cpu_s, "peak_mib": round(used.ru_maxrss / 2**10)}
    print(json.dumps(values))


def make_files(folder: Path, num_rows: int, *, embedded: bool) -> None:
    """train.parquet of `num_rows` rows, val.parquet of 64 others, and their images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vapo_verl.data.parquet_stream import row_schema

    schema = row_schema(embedded_images=embedded)
    encoded = [image(seed) for seed in range(NUM_IMAGES)]
    for number, data in enumerate(encoded):
        (folder / f"image-{number}.jpg").write_bytes(data)
    for name, first, end in (("train", 0, num_rows), ("val", num_rows, num_rows + NUM_IMAGES)):
        with pq.ParquetWriter(folder / f"{name}.parquet", schema) as writer:
            for start in range(first, end, ROWS_PER_GROUP):
                numbers = range(start, min(start + ROWS_PER_GROUP, end))
                rows = [row(folder, number, encoded if embedded else None) for number in numbers]
                writer.write_table(pa.Table.from_pylist(rows, schema))
    (folder / "rows").write_text(str(num_rows))


def image(seed: int) -> bytes:
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (SIDE // 4, SIDE // 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((SIDE, SIDE)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def row(folder: Path, number: int, encoded: list[bytes] | None) -> dict[str, object]:
    place = number % NUM_IMAGES
    if encoded is not None:
        entry: object = {"bytes": encoded[place], "path": None}
    else:
        path = folder / f"{number}.jpg"
        os.link(folder / f"image-{place}.jpg", path)
        entry = str(path)
    claims = [
        {"text": f"The {n} by {number} sign stands to the left of the car.", "label": n % 2 == 0}
        for n in range(20)
    ]
    return {
        "prompt": [{"role": "user", "content": f"<image>What is the area of figure {number}?"}],
        "images": [entry],
        "data_source": "random",
        "reward_model": {"style": "rule", "ground_truth": str(number)},
        "extra_info": {"split": "train", "index": number, "source_id": None},
        "claims": claims,
    }


if __name__ == "__main__":
    main()
