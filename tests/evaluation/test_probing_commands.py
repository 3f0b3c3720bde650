"""The probing commands on the packaged model and the digits world, each in a process of its own."""

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.evaluation.probing_commands import command_line, run, start
from vapo_verl.evaluation.early_decision import load_early_decision
from vapo_verl.evaluation.probing.journal import ROWS_FILE

FOCUS = " look at the image again."


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command with its options, and what has to hold of the folder, records and summary."""

    name: str
    num_test_rows: int
    """Of the data file."""
    options: tuple[str, ...]
    check: Callable[[Path, Sequence[dict], dict], None]
    changed: tuple[str, int, int]
    """One of its own options, with its value and another one: the folder refuses it."""
    killed: bool = False
    """After its first batch, and then run again."""


def check_early_decision(out, records, summary):
    assert [record["row"] for record in records] == list(range(60))
    for row in load_early_decision(out).rows:
        positions = [cut.position for cut in row.cuts]
        assert positions == sorted(positions)
        assert (positions[0], positions[-1]) == row.reasoning
        assert row.response.startswith("<think>")
    assert summary["forced_agrees_with_response"]["share"] > 0.9
    # an answer from nowhere is correct about one time in ten, and thinking helps this model
    assert summary["cuts"][0]["share"]["share"] < summary["cuts"][-1]["share"]["share"]


def check_image_swap(out, records, summary):
    """The image matters at the start, and not after the reasoning."""
    assert all(record["same_size"] for record in records)
    assert all(record["swapped_with"] != record["row"] for record in records)
    for record in records:
        for exchange in record["exchanges"].values():
            assert len(exchange["kl"]) == record["num_tokens"]
            assert len(exchange["claims"]) == len(record["claims"]) > 0

    for cuts in summary["exchanges"].values():
        start, end = cuts[0], cuts[-1]
        # the model's card: 0.1 to 0.12 with another image, which is what text alone can do
        assert start["accuracy"]["share"] < 0.25
        assert start["drop"]["difference"] < 0 and start["drop"]["p"] < 0.01
        assert start["agreement"]["share"] < 0.5
        # the answer is in the reasoning by then
        assert end["agreement"]["share"] > 0.9
        assert start["kl"] > end["kl"]
        assert start["claims"]["own"]["share"] > start["claims"]["exchanged"]["share"] + 0.05
        assert abs(start["claims"]["exchanged"]["share"] - 0.5) < 0.1  # chance


def check_interventions(out, records, summary):
    """The packaged model knows neither intervention; every part of them works."""
    for record in records:
        plain, replay, focus = (record["responses"][n] for n in ("plain", "replay", "focus"))
        for each in (plain, replay, focus):
            assert len(each["attention"]) == each["num_tokens"]
        assert focus["response"].count(FOCUS) >= len(focus["insertions"]) >= 1
        assert FOCUS not in plain["response"] and "user" not in replay["response"]
        for changed in (replay, focus):
            first = changed["insertions"][0]
            assert changed["insertions"] == sorted(changed["insertions"])
            assert changed["attention"][:first] == plain["attention"][:first]
            assert len(changed["insertions"]) <= 4
    responses = summary["responses"]
    assert responses["replay"]["mean_insertions"] > 1
    # a second image of the same size has attention of its own
    assert responses["replay"]["attention"]["mean"] != responses["plain"]["attention"]["mean"]


def check_perception(out, records, summary):
    assert len(records) == 20
    for record in records:
        assert len(record["attention"]) == record["num_tokens"]
        positions = [anchor["position"] for anchor in record["anchors"]]
        assert positions == sorted(positions)
        assert positions.count(0) == 20  # all claims at every cut
        assert positions[-1] <= record["reasoning"][1]
    claims = summary["claims"]
    assert claims["start"]["of"] == 400
    assert claims["all"]["low"] > 0.5  # it sees: its card says 0.7
    assert summary["prefix_cache"]["share"] > 0.3  # questions of 25 tokens after some 20 to 80


COMMANDS = (
    Command(
        name="early-decision",
        num_test_rows=60,
        options=(
            *("--batch", "4", "--time-up", ""),
            *("--answer-start", "\\boxed{", "--answer-tokens", "8"),
        ),
        check=check_early_decision,
        changed=("--num-cuts", 21, 5),
        killed=True,
    ),
    Command(
        name="image-swap",
        num_test_rows=96,
        options=("--num-cuts", "5", "--claims-per-cut", "4", "--batch", "32"),
        check=check_image_swap,
        changed=("--num-cuts", 5, 6),
    ),
    Command(
        name="interventions",
        num_test_rows=12,
        options=("--focus-text", FOCUS, "--replay-scale", "1"),
        check=check_interventions,
        changed=("--num-insertions", 4, 3),
    ),
    Command(
        name="perception",
        num_test_rows=24,
        options=("--num-rows", "20", "--num-cuts", "4", "--claims-per-cut", "20"),
        check=check_perception,
        changed=("--num-cuts", 4, 5),
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_results_of_a_probing_command(command, digits_data, tmp_path):
    data, out = digits_data(test=command.num_test_rows)["test"], tmp_path / "out"
    complete_lines = run_and_kill(command, data, out) if command.killed else b""

    records, summary = run(command.name, data, out, *command.options)
    after = (out / ROWS_FILE).read_bytes()
    assert after.startswith(complete_lines)
    assert after.count(b"\n") == len(records)  # no row was done twice
    command.check(out, records, summary)

    option, before, now = command.changed
    refused = subprocess.run(
        command_line(command.name, data, out, *command.options, option, str(now)),
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2
    assert f"{option} was {before}, is {now}" in refused.stderr


def run_and_kill(command: Command, data: Path, out: Path) -> bytes:
    """Kill the command after its first batch; the complete lines that it left."""
    process = start(command.name, data, out, *command.options)
    while not (out / ROWS_FILE).exists() or not (out / ROWS_FILE).stat().st_size:
        assert process.poll() is None, (out.parent / "log.txt").read_text()[-4000:]
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = (out / ROWS_FILE).read_bytes()
    complete_lines = before[: before.rfind(b"\n") + 1]
    assert complete_lines.count(b"\n") < command.num_test_rows
    return complete_lines
