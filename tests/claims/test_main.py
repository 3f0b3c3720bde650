"""The command line: help without heavy imports, and bad input."""

import pytest

from tests.commands import run_commands
from vapo_verl.claims.__main__ import main

COMMANDS = ("generate", "self", "check", "audit", "attach")


def test_help_lists_all_commands_and_loads_nothing_heavy():
    arguments = (["--help"], ["generate", "--help"], ["self", "-h"], ["check", "-h"])
    ended = run_commands(
        [("vapo_verl.claims", *words) for words in arguments],
        ("openai", "torch", "vllm", "pyarrow", "PIL", "aiohttp"),
    )
    for words, done in zip(arguments, ended, strict=True):
        assert (done.status, done.loaded) == (0, []), words
    assert all(name in ended[0].stdout for name in COMMANDS)


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
        (("--max-wait-s", "0"), "--max-wait-s: 0"),
        (
            ("--max-concurrency", "1" + "0" * 12),
            "--max-concurrency: the number is too large; give 4096",
        ),
        (("--num-claims", "1" + "0" * 12), "and at most 1000"),
    ],
)
def test_bad_values_name_the_option(claims, parquet, tmp_path, capsys, extra, message):
    assert claims("generate", parquet(1), "--out", tmp_path / "out", *extra) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999", "many"])
@pytest.mark.parametrize(
    "option", ["--timeout-s", "--requests-per-minute", "--max-wait-s", "--temperature"]
)
def test_a_number_that_is_not_finite_names_the_option(claims, tmp_path, capsys, option, value):
    with pytest.raises(SystemExit) as stopped:
        claims("generate", tmp_path, "--out", tmp_path / "out", f"{option}={value}")
    assert stopped.value.code == 2
    assert f"argument {option}: '{value}' is no finite number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPENAI_BASE_URL", "127.0.0.1:8000/v1"),
        ("OPENAI_BASE_URL", "ftp://host/v1"),
        ("OPENAI_BASE_URL", "http://user:word@host/v1"),
        ("OPENAI_BASE_URL", "http://host:port/v1"),
        ("OPENAI_BASE_URL", "http://[host/v1"),
        ("OPENAI_BASE_URL", "http:///v1"),
        ("OPENAI_API_KEY", "sk-1\n"),
        ("OPENAI_API_KEY", "sk-\u201c1\u201d"),
    ],
)
def test_an_address_or_a_key_that_cannot_be_one(
    claims, parquet, tmp_path, monkeypatch, capsys, name, value
):
    monkeypatch.setenv(name, value)
    assert claims("generate", parquet(1), "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith(f"{name}: ")


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


@pytest.mark.parametrize("command", ["generate", "check"])
def test_a_file_as_the_folder_is_refused(claims, parquet, tmp_path, capsys, command):
    out = tmp_path / "0.png"
    out.write_bytes(b"")
    words = [tmp_path, parquet(1)] if command == "check" else [parquet(1)]
    assert claims(command, *words, "--out", out) == 2
    said = capsys.readouterr().err
    assert said == f"--out: {out} cannot be written, {out} is no folder; give another folder\n"


def test_arguments_of_vllm_without_their_closing_quote(claims, parquet, tmp_path, capsys):
    words = ("--out", tmp_path / "out", "--model", "m", "--vllm-args", "--x 'unclosed")
    assert claims("self", parquet(1), *words) == 2
    said = capsys.readouterr().err
    assert said.startswith('--vllm-args: No closing quotation in "--x \'unclosed"; end it')
