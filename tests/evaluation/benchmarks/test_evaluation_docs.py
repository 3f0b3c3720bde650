"""The command lines of docs/evaluation.md are understood; the tools of others are not run."""

import json
import re
import shlex
from pathlib import Path

import pytest

from vapo_verl.evaluation.__main__ import COMMANDS, main

PAGE = Path(__file__).parents[3] / "docs" / "evaluation.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def commands(*start: str) -> list[list[str]]:
    """Words of the documented commands that begin so, comments left out."""
    lines = [
        shlex.split(line, comments=True)
        for language, body in BLOCK.findall(PAGE.read_text())
        if language == "bash"
        for line in body.replace("\\\n", " ").splitlines()
    ]
    return [words for words in lines if words[: len(start)] == list(start)]


def test_evaluation_commands_are_understood(tmp_path, monkeypatch, capsys):
    """Their files are missing, which is said; an argument that is not known would exit instead."""
    monkeypatch.chdir(tmp_path)
    found = commands("vapo", "evaluate")
    assert {words[2] for words in found} >= {"benchmark", "score", "compare"}
    for words in found:
        assert words[2] in COMMANDS
        assert main([word.replace("...", "") for word in words[2:]]) == 2
        assert capsys.readouterr().err


def test_export_is_understood(tmp_path, monkeypatch, capsys):
    from vapo_verl.export.__main__ import main as export

    monkeypatch.chdir(tmp_path)
    (words,) = commands("vapo", "export")
    assert export(words[2:]) == 2
    assert "RUN_DIR is no folder" in capsys.readouterr().err


@pytest.mark.slow
def test_serving_is_understood_by_vllm():
    from vllm.entrypoints.openai.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    for words in commands("vllm", "serve"):
        options = make_arg_parser(FlexibleArgumentParser()).parse_args(words[2:])
        assert options.generation_config == "vllm"
    assert options.served_model_name == ["vapo"]
    assert options.limit_mm_per_prompt == {"image": 8}


def test_the_tools_ask_for_the_name_and_port_that_is_served():
    words = commands("vllm", "serve")[-1]
    served = dict(zip(words[3::2], words[4::2], strict=True))
    (config,) = (
        json.loads(body) for language, body in BLOCK.findall(PAGE.read_text()) if language == "json"
    )
    (model,) = config["model"].values()
    address = f"http://127.0.0.1:{served['--port']}/v1"
    assert model["model"] == served["--served-model-name"]
    assert model["api_base"] == f"{address}/chat/completions"
    (lmms,) = commands("python", "-m", "lmms_eval")
    arguments = dict(each.split("=", 1) for each in lmms[-1].split(","))
    assert arguments["model_version"] == served["--served-model-name"]
    assert arguments["base_url"] == address
