"""Time and peak memory of `python -m vapo_verl.claims attach` at two sizes of a training file.

    python benchmarks/attach_claims.py [--num-rows 9000 36000] [--num-records 36000]

The images are random bytes of 20 to 30 KB each: joining hashes them and never decodes. Each join
runs in a separate process, whose peak resident memory shows whether memory grows with the rows.
Prints a table and one JSON line.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

CLAIMS_PER_IMAGE = 20
ROWS_PER_GROUP = 1000


def main() -> None:
    arguments = parse()
    if arguments.make:
        return make_files(arguments.folder, arguments.make, arguments.num_records)
    if arguments.join:
        return join(arguments.folder)
    results = [measured(num_rows, arguments.num_records) for num_rows in arguments.num_rows]
    for result in results:
        print("{num_rows:>7} rows  {file_gib:.2f} GiB  {wall_s:6.1f} s".format(**result), end="")
        print("  {rows_per_s:6.0f} rows/s  peak {peak_mib:.0f} MiB".format(**result))
    print(json.dumps({"benchmark": "attach_claims", "results": results}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-rows", type=int, nargs="+", default=[9_000, 36_000])
    parser.add_argument("--num-records", type=int, default=36_000)
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--join", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(num_rows: int, num_records: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        # This process stays small: a child's peak memory starts at that of its parent.
        itself(folder, f"--make={num_rows}", f"--num-records={num_records}")
        result = json.loads(itself(folder, "--join").splitlines()[-1])
        size = (Path(folder) / "train.parquet").stat().st_size
    return {
        "num_rows": num_rows,
        "num_records": num_records,
        "file_gib": round(size / 2**30, 3),
        "rows_per_s": round(num_rows / result["wall_s"]),
        **result,
    }


def itself(folder: str, *options: str) -> str:
    command = [sys.executable, __file__, f"--folder={folder}", *options]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def join(folder: Path) -> None:
    from vapo_verl.claims import attach

    start = time.monotonic()
    parser = argparse.ArgumentParser()
    attach.add_arguments(parser)
    names = [str(folder / name) for name in ("claims", "train.parquet", "out.parquet")]
    attach.run(parser.parse_args([names[0], names[1], "--out", names[2]]))
    wall_s = time.monotonic() - start
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"wall_s": round(wall_s, 2), "peak_mib": round(peak_mib)}))


def images(num_images: int) -> Iterator[bytes]:
    import numpy as np

    random = np.random.default_rng(0)
    for _ in range(num_images):
        yield b"\xff\xd8\xff" + random.bytes(int(random.integers(20_000, 30_000)))


def make_files(folder: Path, num_rows: int, num_records: int) -> None:
    """A training file, and `num_records` claim records: for its images, then for others."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vapo_verl.data.parquet_stream import row_schema

    schema = row_schema(embedded_images=True)
    schema = schema.remove(schema.get_field_index("claims"))
    (folder / "claims").mkdir()
    rows: list[dict[str, object]] = []
    with (
        (folder / "claims" / "shard-00000.jsonl").open("w") as shard,
        pq.ParquetWriter(folder / "train.parquet", schema) as writer,
    ):
        for number, data in enumerate(images(max(num_rows, num_records))):
            if number < num_records:
                shard.write(record(number, data))
            if number < num_rows:
                rows.append(row(number, data))
            if rows and (len(rows) == ROWS_PER_GROUP or number == num_rows - 1):
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []


def record(number: int, data: bytes) -> str:
    from vapo_verl.claims.images import image_key
    from vapo_verl.claims.shards import ClaimRecord
    from vapo_verl.data.claims_column import Claim

    claims = tuple(
        Claim(f"The {n} by {number} sign stands to the left of the blue car.", n % 2 == 0)
        for n in range(CLAIMS_PER_IMAGE)
    )
    return ClaimRecord(image_key=image_key(data), claims=claims, model="none").to_json() + "\n"


def row(number: int, data: bytes) -> dict[str, object]:
    return {
        "prompt": [{"role": "user", "content": f"<image>What is the area of figure {number}?"}],
        "images": [{"bytes": data, "path": None}],
        "data_source": "random",
        "reward_model": {"style": "rule", "ground_truth": str(number)},
        "extra_info": {"split": "train", "index": number, "source_id": None},
    }


if __name__ == "__main__":
    main()
