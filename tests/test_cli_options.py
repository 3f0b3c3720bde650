"""Arguments from dataclasses; and that no command lost or changed one."""

import argparse
import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.commands import run_commands
from vapo_verl.claims.options import CheckOptions, EndpointOptions, RunOptions
from vapo_verl.cli_options import (
    OptionError,
    add_options,
    check_bounds,
    cli,
    given_options,
    options_from,
    settings_of,
)
from vapo_verl.evaluation.__main__ import COMMANDS
from vapo_verl.evaluation.probing.probe_options import EngineOptions, ProbeOptions

STORED = Path(__file__).parent / "cli_flags.json"
"""Command -> flag or positional -> [required, nargs, default, choices]: users rely on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    scale: float = field(default=0.5, metadata=cli(flag="--zoom"))
    """Of both sides, 100 % at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    source: Path = field(metadata=cli(positional="SOURCE"))
    """Where rows
    are."""
    num_rows: int = field(default=4, metadata=cli(low=1))
    names: tuple[str, ...] = ()
    limit: int | None = None
    kind: str = field(default="a", metadata=cli(choices=("a", "b"), setting=False))
    is_dry: bool = False
    inner: Inner = field(default_factory=Inner, metadata=cli(group="inner"))
    key: str = field(default="none", metadata=cli(hidden=True, setting=False))

    def __post_init__(self) -> None:
        check_bounds(self)


def parse(*words: str, **given):
    parser = argparse.ArgumentParser()
    add_options(parser, Options, given.pop("defaults", {}))
    return options_from(Options, parser.parse_args(words), **given)


def test_fields_become_arguments_and_back():
    assert parse("a.parquet") == Options(source=Path("a.parquet"))
    words = [
        "x",
        "--num-rows",
        "2",
        "--names",
        "p",
        "q",
        "--limit",
        "3",
        "--kind",
        "b",
        "--is-dry",
        "--zoom",
        "0.25",
    ]
    assert parse(*words, key="k") == Options(
        source=Path("x"),
        num_rows=2,
        names=("p", "q"),
        limit=3,
        kind="b",
        is_dry=True,
        inner=Inner(scale=0.25),
        key="k",
    )
    assert parse("x", defaults={"num_rows": 9, "scale": 1.0}) == Options(
        source=Path("x"), num_rows=9, inner=Inner(scale=1.0)
    )


@pytest.mark.parametrize("words", [(), ("x", "--kind", "c"), ("x", "--key", "k"), ("x", "--limit")])
def test_what_argparse_refuses(words):
    with pytest.raises(SystemExit) as stopped:
        parse(*words)
    assert stopped.value.code == 2


def test_a_low_value_is_refused_by_its_flag():
    with pytest.raises(OptionError, match="--num-rows 0: give 1 or more"):
        parse("x", "--num-rows", "0")


def test_a_path_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    parser = argparse.ArgumentParser()
    add_options(parser, Options)
    assert parser.parse_args(["~/rows"]).source == Path("/home/ann/rows")


def test_what_is_given_is_known_even_if_it_is_the_default():
    parser = argparse.ArgumentParser()
    add_options(parser, Options)
    assert given_options(parser.parse_args(["x"])) == frozenset()
    words = ["x", "--num-rows", "4", "--names", "p", "--zoom=0.5"]
    assert given_options(parser.parse_args(words)) == {"num_rows", "names", "zoom"}


def test_help_is_the_docstring_and_the_default():
    parser = argparse.ArgumentParser()
    add_options(parser, Options)
    text = " ".join(parser.format_help().split())
    assert "SOURCE Where rows are" in text
    assert "inner: --zoom ZOOM Of both sides, 100 % at most (0.5)" in text


def test_settings_are_named_as_arguments():
    assert settings_of(Options(source=Path("x"))) == {
        "SOURCE": Path("x"),
        "--num-rows": 4,
        "--names": (),
        "--limit": None,
        "--is-dry": False,
        "--zoom": 0.5,
    }


def test_a_probing_folder_keeps_to_these_settings():
    """A name that an older folder lacks has its default there; one that goes away ends it."""
    options = ProbeOptions(engine=EngineOptions(model="m"), data=Path("d"), out=Path("o"))
    assert set(settings_of(options)) == {
        *("MODEL", "DATA", "--num-rows", "--seed", "--answer-style", "--max-tokens"),
        *("--temperature", "--dtype", "--max-model-len", "--min-pixels", "--max-pixels"),
        *("--attention-layers", "--control-tokens", "--plain-think-tokens"),
        "--chat-template-kwargs",
    }


def test_secrets_are_no_arguments():
    parser = argparse.ArgumentParser()
    for options in (RunOptions, CheckOptions, EndpointOptions):
        add_options(parser, options)
    assert "api" not in parser.format_help().lower()


def described(parser: argparse.ArgumentParser) -> dict[str, list]:
    return {
        ", ".join(action.option_strings or [action.dest]): [
            action.required,
            action.nargs,
            None if action.default is None else str(action.default),
            list(action.choices) if action.choices else None,
        ]
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    }


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command, which `--help` would print."""
    areas = {
        "claims": ("generate", "self", "check", "audit", "attach"),
        "evaluation": tuple(COMMANDS),
        "data": ("check", "grade", "import-vapo-thinker", "import-plain"),
    }
    found = {}
    for area, commands in areas.items():
        module = importlib.import_module(f"vapo_verl.{area}.__main__")
        for command in commands:
            parser = module.build_parser() if area == "data" else module.build_parser([command])
            (choices,) = [
                action.choices
                for action in parser._actions
                if isinstance(action, argparse._SubParsersAction)
            ]
            found[f"{area} {command}"] = choices[command]
    found["export"] = importlib.import_module("vapo_verl.export.__main__").build_parser()
    found["report"] = importlib.import_module("vapo_verl.report.__main__").build_parser()
    return found


def test_no_command_lost_or_changed_an_argument():
    stored = json.loads(STORED.read_text())
    found = {command: described(parser) for command, parser in parsers().items()}
    assert found.keys() == stored.keys()
    for command, arguments in found.items():
        assert arguments == stored[command], command


def test_help_loads_nothing_heavy():
    commands = [
        *("claims generate", "claims audit", "export", "report"),
        *("evaluation perception", "evaluation benchmark", "evaluation compare"),
    ]
    ended = run_commands(
        [f"vapo_verl.{command} --help".split() for command in commands],
        ("torch", "vllm", "verl", "transformers", "pyarrow", "PIL"),
    )
    for command, done in zip(commands, ended, strict=True):
        assert (done.status, done.loaded) == (0, []), command
