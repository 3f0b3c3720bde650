"""The command line: instant help, one line without CUDA, a plan without a run."""

import pytest

from tests.commands import run_commands
from vapo_verl.gpu_check.__main__ import main, plan
from vapo_verl.gpu_check.runner import STAGES

HEAVY = ("torch", "numpy", "vllm", "verl", "ray", "transformers", "triton")


def test_help_and_plan_import_nothing_heavy():
    commands = [("vapo_verl.gpu_check", option) for option in ("--help", "--dry-run")]
    for done in run_commands(commands, HEAVY):
        assert (done.status, done.loaded) == (0, [])
        assert all(stage.name in done.stdout for stage in STAGES)


def test_without_cuda_it_says_so_in_one_line_and_exits_with_2(run_module, tmp_path):
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    done = run_module("vapo_verl.gpu_check", "--out", tmp_path / "out", env=hidden)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "torch sees no CUDA device" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "kernel"], "--stages kernel is not known"),
        (["--minutes", "0"], "--minutes 0 is too small"),
        (["--minutes", "soon"], "invalid float value"),
    ],
)
def test_bad_usage_exits_with_2_and_the_fix(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_the_plan_tells_limits_and_needs():
    lines = plan(STAGES, 5).splitlines()
    assert lines[0] == "5 minutes"
    told = {line.split()[0]: line for line in lines[2:]}
    assert set(told) == {stage.name for stage in STAGES}
    assert "no time" in told["probes"]
    assert "ray" in told["train"]
