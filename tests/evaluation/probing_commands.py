"""Runs commands on the packaged model and the digits world, each in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

from vapo_verl.digits.model import model_dir
from vapo_verl.evaluation.probing.journal import PAGE_FILE, SUMMARY_FILE, read_records

ENVIRONMENT = {"TORCHDYNAMO_DISABLE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
SMALL = (
    *("--dtype", "float32", "--kv-cache-gib", "0.25"),
    *("--answer-style", "exact", "--max-tokens", "160"),
)


def command_line(command: str, data: Path, out: Path, *options: str) -> list[str]:
    module = [sys.executable, "-m", "vapo_verl.evaluation"]
    return [*module, command, str(model_dir()), str(data), "--out", str(out), *SMALL, *options]


def start(command: str, data: Path, out: Path, *options: str) -> subprocess.Popen:
    with (out.parent / "log.txt").open("a") as log:
        return subprocess.Popen(
            command_line(command, data, out, *options),
            env=os.environ | ENVIRONMENT,
            stdout=log,
            stderr=log,
        )


def run(command: str, data: Path, out: Path, *options: str) -> tuple[list[dict], dict]:
    """Records and summary of a command that has to succeed; it also has to leave a page."""
    process = start(command, data, out, *options)
    assert process.wait(600) == 0, (out.parent / "log.txt").read_text()[-4000:]
    assert b"Content-Security-Policy" in (out / PAGE_FILE).read_bytes()
    return read_records(out), json.loads((out / SUMMARY_FILE).read_text())
