"""What is refused before an engine starts, and how the message helps."""

import subprocess
import sys

import pytest

from vapo_verl.evaluation.__main__ import BAD_INPUT, PROBING, main


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"not read")
    return str(path)


@pytest.mark.parametrize("command", PROBING)
def test_results_need_a_place(command, data, capsys):
    assert main([command, "MODEL", data]) == BAD_INPUT
    assert f"RUN_DIR/diagnostics/{command}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command, options, message",
    [
        ("early-decision", ["--num-cuts", "1"], "--num-cuts 1: give 2 or more"),
        ("perception", ["--claims-per-cut", "0"], "--claims-per-cut 0: give 1 or more"),
        ("perception", ["--attention-layers", "first"], "give `all` or indices"),
        ("image-swap", ["--temperature", "0.7"], "image-swap compares greedy responses"),
        (
            "interventions",
            ["--replay-scale", "2"],
            "--replay-scale 2.0: give more than 0, at most 1",
        ),
        ("interventions", ["--max-tokens", "0"], "--max-tokens 0: give 1 or more"),
        ("interventions", ["--min-pixels", "-1"], "--min-pixels -1: give 1 or more"),
        ("interventions", [], "cannot read"),
    ],
)
def test_bad_values_are_named(command, options, message, data, tmp_path, capsys):
    arguments = [command, "MODEL", data, "--out", str(tmp_path / "out"), *options]
    assert main(arguments) == BAD_INPUT
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_folder_has_to_be_there(data, tmp_path, capsys):
    assert main(["interventions", "MODEL", data, "--run", str(tmp_path / "none")]) == BAD_INPUT
    assert "no such folder" in capsys.readouterr().err
    assert main(["interventions", "MODEL", "none.parquet", "--out", str(tmp_path)]) == BAD_INPUT
    assert "none.parquet does not exist" in capsys.readouterr().err


def test_help_and_results_need_no_heavy_library():
    code = """
import contextlib, io, sys
import vapo_verl.evaluation.early_decision
from vapo_verl.evaluation.__main__ import PROBING, main
for command in PROBING:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main([command, "--help"])
print([name for name in ("torch", "vllm", "transformers") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
