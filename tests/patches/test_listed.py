"""Every patch that the package uses is named in its table."""

import ast
from pathlib import Path

import vapo_verl
from tests.paths import ROOT

PACKAGE = Path(vapo_verl.__file__).parent
PATCHES = "vapo_verl.patches"


def used_of(path):
    """`FILE.FUNCTION` of what a file of the package takes from patches/."""
    tree = ast.parse(path.read_text())
    files = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == PATCHES:
            files |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"{PATCHES}."):
            yield from (f"{node.module.rpartition('.')[2]}.{alias.name}" for alias in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in files:
            yield ast.unparse(node)


def test_the_table_of_changes_names_every_function_that_is_used():
    functions = {
        f"{path.stem}.{node.name}"
        for path in (PACKAGE / "patches").glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    others = [p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE / "patches"]
    used = {name for path in others for name in used_of(path)} & functions
    assert {"upstream.join_chunks", "text_only_forward.apply"} <= used  # both ways to import
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page.partition("## Changes to upstream code")[2]
    assert [name for name in sorted(used) if f"`{name}`" not in table] == []
