"""Who may import whom: an area of the package imports from the lines above its own only."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import vapo_verl

LAYERS = (
    (
        "cli_options",
        "config",
        "console",
        "files",
        "heartbeat",
        "patches",
        "process_tree",
        "version",
    ),
    ("advantage", "attention", "hydra_config", "platform", "reward"),
    ("data",),
    ("anchors", "lora", "methods", "run_folder", "settings"),
    ("analysis", "digits", "export", "plots"),
    ("claims",),
    ("evaluation",),
    ("rollout",),
    ("gpu_check", "preflight"),
    ("report",),
    ("trainer",),
    ("launch",),
    ("cli", "doctor", "main"),
)
"""Folders and files of vapo_verl/, lowest first. Those in one line do not import each other."""
PURE = {
    *("cli_options", "config", "files", "hydra_config", "preflight"),
    *("advantage", "analysis", "anchors", "claims", "data", "digits", "export", "plots"),
    *("lora", "methods", "report", "reward", "run_folder", "settings"),
}
"""Areas that import no framework at module level."""
ADAPTERS = {"vapo_verl.advantage.estimator", "vapo_verl.data.dataset"}
"""Modules of pure areas that are veRL's side of them."""
FRAMEWORKS = {"ray", "transfer_queue", "verl", "vllm"}

PACKAGE = Path(vapo_verl.__file__).parent
FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(node: ast.AST, *, lazy: bool) -> Iterator[str]:
    """Modules imported below `node`; `lazy` adds those of functions and of TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            for alias in child.names:
                name = f"{child.module}.{alias.name}"
                yield name if name in FILES else str(child.module)
        elif lazy or not (
            isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING")
        ):
            yield from imports(child, lazy=lazy)


ARROWS = {
    module: {
        other
        for other in imports(ast.parse(path.read_text()), lazy=True)
        if other in FILES and other != module
    }
    for module, path in FILES.items()
}


def area(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_no_area_imports_upward():
    level = {name: number for number, line in enumerate(LAYERS) for name in line}
    arrows = [(a, b) for a in ARROWS for b in ARROWS[a]]
    between = [(a, b) for a, b in arrows if area(a) and area(b) and area(a) != area(b)]
    unknown = {area(module) for arrow in between for module in arrow} - level.keys()
    assert not unknown, "areas without a place in LAYERS"
    assert [f"{a} -> {b}" for a, b in between if level[area(a)] <= level[area(b)]] == []


def test_no_circle_of_files():
    TopologicalSorter(ARROWS).prepare()  # raises CycleError, which names the files


def test_pure_areas_import_no_framework():
    found = [
        f"{module} imports {name}"
        for module, path in FILES.items()
        if area(module) in PURE and module not in ADAPTERS
        for name in imports(ast.parse(path.read_text()), lazy=False)
        if name.split(".")[0] in FRAMEWORKS
    ]
    assert found == []
