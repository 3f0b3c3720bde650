"""Commands of the pages that start a run compose, and no check of their settings refuses them."""

import re
import shlex
from pathlib import Path

import pytest

from tests.paths import ROOT
from vapo_verl import preflight
from vapo_verl.hydra_config import compose_recipe
from vapo_verl.settings import check_settings

PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
_BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
_NOT_OF_THE_CONFIG = {"...", "key=value", "--json"}
ANY_RECIPE = "smoke"
"""For `+recipe=NAME`."""


def commands() -> list[tuple[str, str, list[str]]]:
    """Page, recipe and overrides of every command in a block."""
    found = []
    for page in sorted(PAGES):
        lines = "\n".join(_BLOCK.findall(page.read_text())).replace("\\\n", " ").splitlines()
        for line in lines:
            if "+recipe=" not in line or " -m +recipe" in line:  # a sweep is several runs
                continue
            words = shlex.split(line, comments=True)
            place = next(i for i, word in enumerate(words) if word.startswith("+recipe="))
            recipe = words[place].removeprefix("+recipe=").replace("NAME", ANY_RECIPE)
            overrides = [w for w in words[place + 1 :] if w not in _NOT_OF_THE_CONFIG]
            found.append((page.name, recipe, overrides))
    return found


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """What the commands name, and a machine with flash-attn and cupy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "lacks_flash_attention", lambda _: False)
    monkeypatch.setattr(preflight, "lacks_cupy", lambda: False)
    Path("my_reward.py").write_text("def graded(*_, **__): return 1.0\n")


@pytest.mark.parametrize(("page", "recipe", "overrides"), commands())
def test_a_command_of_a_page_is_accepted(page, recipe, overrides):
    config = compose_recipe(recipe, overrides)
    check_settings(config)
    for check in preflight.CHECKS:
        check.run(config)


def test_pages_have_commands():
    assert len(commands()) > 20
