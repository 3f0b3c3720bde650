"""`vapo COMMAND` is `python -m MODULE`."""

import subprocess
import sys

import pytest

from tests.commands import run_commands
from vapo_verl.cli import COMMANDS, Command, main

HEAVY = ("torch", "vllm", "verl", "ray", "transformers")


def call(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True)


@pytest.fixture(scope="module")
def helps():
    """Name -> help through `vapo`, help of the module."""
    through = [("vapo_verl.cli", name, "--help") for name in COMMANDS]
    alone = [(command.module, "--help") for command in COMMANDS.values()]
    ended = run_commands([*through, *alone], HEAVY)
    num = len(COMMANDS)
    return dict(zip(COMMANDS, zip(ended[:num], ended[num:], strict=True), strict=True))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_the_modules_own_and_imports_nothing_heavy(helps, name):
    through, alone = helps[name]
    assert (through.status, through.stderr, through.loaded) == (0, "", [])
    assert through.stdout == alone.stdout != ""


def test_arguments_and_exit_codes_pass_through():
    through = call("-m", "vapo_verl.cli", "train", "+recipe=smoke", "trainer.no_such_key=1")
    alone = call("-m", "vapo_verl.main", "+recipe=smoke", "trainer.no_such_key=1")
    assert through.returncode == alone.returncode != 0
    assert "no_such_key" in through.stderr


def test_composing_finds_the_packaged_config():
    through = call("-m", "vapo_verl.cli", "train", "+recipe=smoke", "--cfg", "job", "-p", "vapo")
    assert through.returncode == 0, through.stderr
    assert "num_anchors: 8" in through.stdout


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_command_it_lists_them(capsys, monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["vapo", *arguments])
    assert main() == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_an_unknown_command_is_refused(capsys):
    assert main(["trian"]) == 2
    assert "trian is no command; use one of train, doctor" in capsys.readouterr().err


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vapo_verl 0.")


def test_packages_of_the_working_folder_are_found(tmp_path, monkeypatch):
    """As by ``python -m``, and by Ray's workers."""
    (tmp_path / "of_the_folder.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.setattr(sys, "argv", ["vapo"])
    monkeypatch.setitem(COMMANDS, "train", Command("of_the_folder", ""))
    with pytest.raises(SystemExit) as ended:
        main(["train"])
    assert ended.value.code == 7
