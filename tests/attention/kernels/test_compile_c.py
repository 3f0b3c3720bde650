"""One compilation per source, compiler and CPU, in a folder of the user's own."""

import os

import pytest

from vapo_verl.attention.kernels import cpu
from vapo_verl.attention.kernels.cpu import CannotCompileError, load_library


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return 42; }\n")
    return path


def built(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "vapo_verl").iterdir())


def test_it_is_compiled_once_and_again_when_the_source_changes(source, tmp_path, monkeypatch):
    assert load_library(source).answer() == 42
    [first] = built(tmp_path)
    monkeypatch.setattr(cpu, "compile_library", None)  # a second compilation would fail
    assert load_library(source).answer() == 42
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source.write_text("int answer(void) { return 43; }\n")
    assert load_library(source).answer() == 43
    assert len(built(tmp_path)) == 2 and first in built(tmp_path)


def test_what_the_compiler_says_is_passed_on_and_nothing_is_left(source, tmp_path):
    source.write_text("int answer(void) { return missing; }\n")
    with pytest.raises(CannotCompileError, match="missing"):
        load_library(source)
    assert built(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_passed_over(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(cpu.tempfile, "tempdir", str(tmp_path))
    assert load_library(source).answer() == 42


def test_folders_of_another_user_are_refused(source, tmp_path, monkeypatch):
    """It may have put any library there."""
    monkeypatch.setattr(cpu.tempfile, "tempdir", str(tmp_path))
    owner = os.getuid()
    monkeypatch.setattr(cpu.os, "getuid", lambda: owner + 1)
    with pytest.raises(CannotCompileError, match=f"vapo_verl-{owner + 1} belongs to another user"):
        load_library(source)
    assert built(tmp_path) == []


def test_a_user_without_a_home(source, tmp_path, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(cpu.Path, "home", no_home)
    monkeypatch.setattr(cpu.tempfile, "tempdir", str(tmp_path))
    assert load_library(source).answer() == 42
