"""Tests use the public names of the product: a private one can change without breaking a test."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("vapo_verl", "benchmarks")
OF_UPSTREAM = {
    *("_build_messages", "_compute_advantage", "_compute_multi_modal_inputs"),
    *("_build_fsdp_module", "_compute_old_log_prob", "_evict_terminal_groups"),
    *("_init_dataloader", "_load_checkpoint", "_save_checkpoint"),
    *("_get_input_embeds", "_supports_onednn", "_wait_for_next_poll"),
    *(
        "_agent_loop_postprocess",
        "_run_agent_loop",
        "_run_prompt",
        "_step_once",
        "_val_metrics_update",
    ),
}
"""Private names of verl and vllm that the product overrides or replaces."""
PATCHES = {"setattr", "getattr", "delattr", "patch", "object"}
"""Calls that take a name as a string."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name.strip("_") != ""


def defined(tree: ast.Module) -> Iterator[str]:
    """Names of functions, classes, variables and attributes that a file makes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def used(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of imports from the product, of attributes, and of patched attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PRODUCT:
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in PATCHES:
            for value in node.args:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield node.lineno, value.value.split(".")[-1]


def private_names(text: str, of_product: set[str]) -> list[tuple[int, str]]:
    """Uses of the product's private names in a test; names that the test itself makes are its own.

    Code in a string, for a process of its own, is looked through as well.
    """
    tree = ast.parse(text)
    own = set(defined(tree)) | OF_UPSTREAM
    found = [(line, name) for line, name in used(tree) if name in of_product - own]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
            imports = [line.strip() for line in node.value.splitlines() if "import _" in line]
            found += [(node.lineno, line) for line in imports]
    return sorted(found)


@pytest.fixture(scope="module")
def of_product() -> set[str]:
    files = [path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py")]
    return {name for path in files for name in defined(ast.parse(path.read_text()))} - {"_"}


def test_no_test_uses_a_private_name_of_the_product(of_product):
    private = set(filter(is_private, of_product))
    assert len(private) > 100
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if path != Path(__file__)
        for line, name in private_names(path.read_text(), private)
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "from vapo_verl.x import _hidden",
        "import vapo_verl.x as x\nx._hidden()",
        "def test(monkeypatch):\n    monkeypatch.setattr(x, '_hidden', None)",
        "def test(monkeypatch):\n    monkeypatch.setattr('vapo_verl.x._hidden', None)",
        "code = '''\nfrom vapo_verl.x import _hidden\n'''",
    ],
)
def test_every_way_to_a_private_name_is_found(text):
    assert len(private_names(text, {"_hidden"})) == 1
