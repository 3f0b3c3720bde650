"""The README's picture can be drawn from any run that exports visual attention."""

import io
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "docs" / "pictures" / "response.py"
PICTURE = SCRIPT.with_name("response.svg")
MAX_BYTES = 200_000
"""Of a picture in the repository."""


def anchor(position: int, *, label: bool, answer: bool) -> dict:
    judged = {"label": label, "answer": answer, "correct": label == answer, "p_yes": 0.5}
    return {"position": position, "claim": "A $6 & <b> is left.", **judged}


def row(sample: int, attention: float) -> dict:
    image = io.BytesIO()
    Image.new("RGB", (6, 4), "blue").save(image, "PNG")
    tokens = ["<think>", "left", " is", " 6", ".", "\n", "</think>", "\\boxed", "{6}"]
    return {
        "step": 1,
        "uid": "000001-00000",
        "sample": sample,
        "prompt": "user\nWhich digit is left?\nassistant\n",
        "images": [image.getvalue()],
        "tokens": tokens,
        "visual_attention": [attention] * len(tokens),
        "ground_truth": "6",
        "reward": {"accuracy": 1.0, "format": 1.0, "perception": 0.5, "total": 2.05},
        "anchors": [anchor(5, label=True, answer=True), anchor(6, label=False, answer=True)],
    }


def write_run(run_dir: Path, *rows: dict) -> Path:
    folder = run_dir / "rollouts"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "step_000001.parquet")
    return run_dir


def draw(run_dir: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(run_dir), "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_same_run_gives_the_same_picture(tmp_path):
    run_dir = write_run(tmp_path / "run", row(0, 0.5), row(1, 0.25))
    pictures = [tmp_path / f"{i}.svg" for i in range(2)]
    for picture in pictures:
        done = draw(run_dir, picture, "--sample", "1")
        assert done.returncode == 0, done.stderr
        assert "sample 1" in done.stdout
    first, second = (picture.read_bytes() for picture in pictures)
    assert first == second
    assert b"<svg" in first and b"<script" not in first


@pytest.mark.parametrize(
    ("rows", "message"),
    [((), "no rollouts"), ((row(0, float("nan")),), "no such response with visual attention")],
)
def test_a_run_without_attention_is_refused(tmp_path, rows, message):
    run_dir = write_run(tmp_path / "run", *rows) if rows else tmp_path
    done = draw(run_dir, tmp_path / "out.svg")
    assert done.returncode == 2
    assert message in done.stderr


def test_the_committed_picture_is_small():
    assert PICTURE.stat().st_size < MAX_BYTES
