"""What docs/troubleshooting.md names is there: settings, commands, metrics, checks, pages."""

import importlib.util
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vapo_verl.doctor import __main__ as doctor
from vapo_verl.hydra_config import compose_recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
QUOTED = set(re.findall(r"`([^`\n]+)`", PAGE))
GROUPS = ("actor_rollout_ref", "data", "ray_kwargs", "reward", "trainer", "vapo")
SETTINGS = sorted(q for q in QUOTED if re.fullmatch(rf"\+?({'|'.join(GROUPS)})(\.\w+)+(=\S+)?", q))
OF_VERL = {"actor", "response_length", "timing_s"}
"""Groups of metrics that are veRL's own."""


def test_there_is_something_to_check():
    assert len(SETTINGS) > 30


@pytest.fixture(scope="module")
def composed():
    return compose_recipe("vapo")


@pytest.mark.parametrize("setting", [s for s in SETTINGS if not s.startswith("+")])
def test_settings_exist(composed, setting):
    parent, _, name = setting.partition("=")[0].rpartition(".")
    assert name in OmegaConf.select(composed, parent)


def test_settings_with_a_value_compose():
    compose_recipe("vapo", [s for s in SETTINGS if "=" in s and "trainer.nnodes" not in s])


def test_commands_exist():
    modules = set(re.findall(r"python -m ([\w.]+)", PAGE))
    assert modules >= {"vapo_verl.doctor", "vapo_verl.data", "vapo_verl.report"}
    for module in modules:
        found = importlib.util.find_spec(module)
        assert found is not None, module
        if found.submodule_search_locations:
            assert importlib.util.find_spec(f"{module}.__main__"), f"python -m {module}"
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`make ([\w-]+)", PAGE)) <= set(targets)


def test_metrics_are_those_of_the_run_folder():
    page = (ROOT / "docs" / "run_folder.md").read_text()
    known = " ".join(re.sub(r"[{},`]", " ", page).split())
    for metric in (q for q in QUOTED if re.fullmatch(r"[a-z_]+(/[a-z_]+)+", q)):
        group, _, name = metric.rpartition("/")
        if group.partition("/")[0] not in OF_VERL and group != "vapo/advantage":
            assert name in known, metric


def test_checks_are_those_the_doctor_documents():
    table = (ROOT / "docs" / "doctor.md").read_text()
    named = re.findall(r"[Tt]he\s+doctor's\s+`([a-z ]+)`", PAGE)
    assert len(named) > 10
    for check in named:
        assert f"`{check}`" in table, check


def test_linked_pages_exist():
    for page in re.findall(r"\]\(([\w./]+\.md)", PAGE):
        assert (ROOT / "docs" / page).is_file(), page


def test_the_command_at_the_top_is_the_doctors():
    parser = doctor.build_parser()
    assert parser.prog in PAGE
