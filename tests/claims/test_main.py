"""The command line: help without heavy imports, and bad input."""

import subprocess
import sys

import pytest

from vapo_verl.claims.__main__ import main

COMMANDS = ("generate", "self", "check", "audit", "attach")


def test_help_lists_all_commands_and_loads_nothing_heavy():
    code = (
        "import sys; from vapo_verl.claims.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'openai', 'torch', 'vllm', 'pyarrow', 'PIL', 'aiohttp'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for arguments in (["--help"], ["generate", "--help"], ["self", "-h"], ["check", "-h"]):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        if arguments == ["--help"]:
            assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"vapo_verl.claims {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--num-claims", "1"), "--num-claims: 1"),
        (("--max-concurrency", "0"), "--max-concurrency: 0"),
        (("--timeout-s", "-1"), "--timeout-s: -1"),
        (("--temperature", "-1"), "--temperature: -1"),
        (("--requests-per-minute", "0"), "--requests-per-minute: 0"),
        (("--column", "picture"), "--column"),
        (("--price-table", "absent.yaml"), "absent.yaml"),
    ],
)
def test_bad_values_name_the_option(claims, parquet, tmp_path, capsys, extra, message):
    assert claims("generate", parquet(1), "--out", tmp_path / "out", *extra) == 2
    assert message in capsys.readouterr().err


def test_a_source_that_is_not_there(claims, tmp_path, capsys):
    assert claims("generate", tmp_path / "absent", "--out", tmp_path / "out") == 2
    assert "SOURCE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"), [("VAPO_CLAIMS_MODEL", "--model"), ("OPENAI_API_KEY", "OPENAI_BASE_URL")]
)
def test_what_the_environment_must_hold(
    claims, parquet, tmp_path, monkeypatch, capsys, name, message
):
    monkeypatch.delenv(name)
    if name == "OPENAI_API_KEY":
        monkeypatch.delenv("OPENAI_BASE_URL")
    assert claims("generate", parquet(1), "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
