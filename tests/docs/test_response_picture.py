"""The README's picture can be drawn from any run that exports visual attention."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.report.run_folders import anchor, png, rollout_row

SCRIPT = Path(__file__).parents[2] / "docs" / "pictures" / "response.py"
PICTURE = SCRIPT.with_name("response.svg")
MAX_BYTES = 200_000
"""Of a picture in the repository."""


def row(sample: int, attention: float) -> dict:
    tokens = ["<think>", "left", " is", " 6", ".", "\n", "</think>", "\\boxed", "{6}"]
    claim = "A $6 & <b> is left."
    return rollout_row(
        sample=sample,
        prompt="user\nWhich digit is left?\nassistant\n",
        images=[png(6, 4, "blue")],
        tokens=tokens,
        visual_attention=[attention] * len(tokens),
        anchors=[
            anchor(5, label=True, p_yes=0.9, claim=claim),
            anchor(6, label=False, p_yes=0.9, claim=claim),
        ],
    )


def draw(run_dir: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(run_dir), "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_same_run_gives_the_same_picture(make_run, tmp_path):
    run_dir = make_run("run", {1: [row(0, 0.5), row(1, 0.25)]})
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
def test_a_run_without_attention_is_refused(make_run, tmp_path, rows, message):
    run_dir = make_run("run", {1: list(rows)} if rows else {})
    done = draw(run_dir, tmp_path / "out.svg")
    assert done.returncode == 2
    assert message in done.stderr


def test_the_committed_picture_is_small():
    assert PICTURE.stat().st_size < MAX_BYTES
