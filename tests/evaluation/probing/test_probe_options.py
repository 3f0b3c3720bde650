"""What is refused before an engine starts, and how the message helps."""

import argparse
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from tests.composing import compose_once
from vapo_verl.evaluation.__main__ import BAD_INPUT, PROBING, main
from vapo_verl.evaluation.early_decision import EarlyOptions
from vapo_verl.evaluation.image_swap import ImageSwapOptions
from vapo_verl.evaluation.perception import PerceptionOptions
from vapo_verl.evaluation.probing.job import finish_rows
from vapo_verl.evaluation.probing.journal import SETTINGS_FILE
from vapo_verl.evaluation.probing.probe_options import (
    OF_RUN,
    EngineOptions,
    ProbeOptions,
    QuestionOptions,
    add_command_arguments,
    read_command_options,
)
from vapo_verl.run_folder import RunError

RUN = {
    "data": {
        "min_pixels": 784,
        "max_pixels": 5000,
        "max_response_length": 160,
        "apply_chat_template_kwargs": {"enable_thinking": False},
    },
    "actor_rollout_ref": {"model": {"custom_chat_template": "{{ messages[0].content }}\n" * 50}},
    "vapo": {
        "data": {"control_tokens": "text", "plain_think_tokens": True},
        "reward": {"answer_style": "exact"},
        "anchors": {"question": "\n{claim} True?", "yes_words": [" True"], "no_words": [" False"]},
    },
}
"""What a run's config says of the options in OF_RUN."""


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
        ("perception", ["--question", "{claim} Yes? "], "does not end with white space"),
        ("image-swap", ["--no-words", ""], "--no-words: an empty word"),
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


@pytest.fixture
def of_run(data, tmp_path):
    """Options that a command has with --run RUN_DIR, whose config.yaml is `config`."""

    def read(config: dict | str | None, *words: str) -> ProbeOptions:
        if config is not None:
            text = config if isinstance(config, str) else OmegaConf.to_yaml(config)
            (tmp_path / "config.yaml").write_text(text)
        parser = argparse.ArgumentParser()
        add_command_arguments(parser, EarlyOptions, "forced answers", attention=False)
        given = parser.parse_args(["MODEL", data, "--run", str(tmp_path), *words])
        return read_command_options(given, "early-decision", EarlyOptions)[0]

    return read


def values(options: ProbeOptions) -> dict:
    parts = (options.engine, options)
    return {name: getattr(part, name) for name in OF_RUN for part in parts if hasattr(part, name)}


DEFAULTS = {
    "min_pixels": None,
    "max_pixels": None,
    "control_tokens": "refuse",
    "plain_think_tokens": "auto",
    "answer_style": "math",
    "max_tokens": 1024,
    "chat_template": None,
    "chat_template_kwargs": None,
}


def test_a_run_sets_what_is_not_given(of_run, tmp_path, capsys):
    options = of_run(RUN)
    assert values(options) == {
        "min_pixels": 784,
        "max_pixels": 5000,
        "control_tokens": "text",
        "plain_think_tokens": "true",
        "answer_style": "exact",
        "max_tokens": 160,
        "chat_template": "{{ messages[0].content }}\n" * 50,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert options.out == tmp_path / "diagnostics" / "early-decision"
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path}/config.yaml: --min-pixels 784, --max-pixels 5000, ")
    assert "--chat-template '{{ messages" in said and len(said) < 800
    assert of_run(RUN, "--out", "elsewhere").max_tokens == 160


def test_what_is_given_wins_even_if_it_is_the_default(of_run, tmp_path):
    words = ["--min-pixels", "900", "--control-tokens", "refuse", "--plain-think-tokens", "auto"]
    words += ["--max-pixels", "6000", "--answer-style", "math", "--max-tokens", "1024"]
    template = tmp_path / "mine.jinja"
    template.write_text("mine")
    words += ["--chat-template-kwargs", "{}", "--chat-template", str(template)]
    given = DEFAULTS | {"min_pixels": 900, "max_pixels": 6000, "chat_template_kwargs": {}}
    assert values(of_run(RUN, *words)) == given | {"chat_template": "mine"}


def test_a_template_that_cannot_be_read_is_refused(of_run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        of_run({}, "--chat-template", str(tmp_path / "none.jinja"))
    assert "none.jinja' cannot be read" in capsys.readouterr().err


def test_claims_are_asked_as_in_the_run(data, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(RUN))
    parser = argparse.ArgumentParser()
    add_command_arguments(parser, PerceptionOptions, "claims", attention=True)

    def asked(*words: str) -> QuestionOptions:
        given = parser.parse_args(["MODEL", data, "--run", str(tmp_path), *words])
        return read_command_options(given, "perception", PerceptionOptions)[1].asked

    of_run = QuestionOptions(question="\n{claim} True?", yes_words=(" True",), no_words=(" False",))
    assert asked() == of_run
    assert "--question '\\n{claim} True?', --yes-words (' True',)" in capsys.readouterr().out
    assert asked("--yes-words", "True", "Right") == replace(of_run, yes_words=("True", "Right"))


def test_arguments_of_the_template_may_refer_to_other_keys(of_run):
    given = {"budget": "${data.max_response_length}"}
    config = {"data": {"max_response_length": 160, "apply_chat_template_kwargs": given}}
    assert of_run(config).engine.chat_template_kwargs == {"budget": 160}


@pytest.mark.parametrize("config", [None, {}, {"data": {"min_pixels": None}}])
def test_a_run_that_sets_nothing_leaves_the_defaults(config, of_run, capsys):
    assert values(of_run(config)) == DEFAULTS
    assert capsys.readouterr().out == ""


def test_the_study_measures_as_before(of_run):
    """Its commands give style and tokens; all else is the default in the recipe, too."""
    config = compose_once("study")
    kept = OmegaConf.create({"data": {}, "vapo": {}})
    for key in OF_RUN.values():
        OmegaConf.update(kept, key, OmegaConf.select(config, key))
    words = ("--answer-style", "exact", "--max-tokens", "160")
    with_config = of_run(OmegaConf.to_yaml(kept), *words)
    assert values(with_config) == DEFAULTS | {"answer_style": "exact", "max_tokens": 160}
    assert with_config == replace(with_config, engine=of_run("{}", *words).engine)


@pytest.mark.parametrize(
    ("config", "words", "message"),
    [
        ("data: [", [], "config.yaml is damaged"),
        ("- a", [], "config.yaml is damaged"),
        (
            {"vapo": {"reward": {"answer_style": "judge"}}},
            [],
            "vapo.reward.answer_style=judge, and probes ask no judge; give --answer-style, one of",
        ),
        (RUN, ["--max-pixels", "700"], "--min-pixels 784 is above --max-pixels 700"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(config, words, message, of_run):
    with pytest.raises(ValueError, match=message):
        of_run(config, *words)


def test_a_judged_run_is_probed_in_the_style_that_is_given(of_run):
    judged = {"vapo": {"reward": {"answer_style": "judge"}}}
    assert of_run(judged, "--answer-style", "text").answer_style == "text"


@pytest.mark.parametrize("command_options", [PerceptionOptions, ImageSwapOptions])
def test_a_folder_holds_results_of_one_question(command_options, digits_data, tmp_path):
    data = digits_data(test=6)["test"]
    options = ProbeOptions(engine=EngineOptions(model="m"), data=data, out=tmp_path)
    before = command_options().settings()
    older = {name: of for name, of in before.items() if not name.endswith("-words")}
    (tmp_path / SETTINGS_FILE).write_text(json.dumps(options.settings() | older))
    finish_rows([], options, before, lambda *_: [])  # the folder of an older release is resumed
    now = command_options(asked=QuestionOptions(question="{claim} True?", no_words=("False",)))
    with pytest.raises(RunError, match=r"--no-words was .* question was .*, is '{claim} True\?'"):
        finish_rows([], options, now.settings(), lambda *_: [])


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


def test_a_folder_holds_results_of_one_template(digits_data, tmp_path):
    data = digits_data(test=6)["test"]
    before = ProbeOptions(engine=EngineOptions(model="m"), data=data, out=tmp_path)
    finish_rows([], before, {}, lambda *_: [])
    now = replace(before, engine=replace(before.engine, chat_template="x" * 5000))
    with pytest.raises(RunError, match=r"--chat-template was None, is '[0-9a-f]{16}'"):
        finish_rows([], now, {}, lambda *_: [])


@pytest.mark.parametrize(
    ("option", "value", "default"),
    [
        ("--control-tokens", "text", "refuse"),
        ("--plain-think-tokens", "false", "auto"),
        ("--chat-template-kwargs", {"mood": "merry"}, None),
    ],
)
def test_a_folder_holds_results_of_one_prompt(option, value, default, digits_data, tmp_path):
    data = digits_data(test=6)["test"]
    before = ProbeOptions(engine=EngineOptions(model="m"), data=data, out=tmp_path)
    old = {name: of for name, of in before.settings().items() if name != option}
    (tmp_path / SETTINGS_FILE).write_text(json.dumps(old))
    field = option.removeprefix("--").replace("-", "_")
    now = replace(before, engine=replace(before.engine, **{field: value}))
    finish_rows([], before, {}, lambda *_: [])  # the folder of an older release is resumed
    with pytest.raises(RunError, match=re.escape(f"{option} was {default!r}, is {value!r}")):
        finish_rows([], now, {}, lambda *_: [])
