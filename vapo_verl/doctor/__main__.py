"""Command line: python -m vapo_verl.doctor [+recipe=NAME key=value ...] [--config-dir DIR] [--json]

Exit code 0: no errors. 1: errors. 2: bad usage.
"""

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vapo_verl.cli_options import user_path
from vapo_verl.doctor.findings import Finding, examine
from vapo_verl.hydra_config import also_in, recipe_names
from vapo_verl.launch import composed
from vapo_verl.settings import unreadable_override

RECIPE = "+recipe="


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_intermixed_args(arguments)
    recipe, overrides = _split(parser, options.overrides)
    for argument in overrides:
        if problem := unreadable_override(argument):
            parser.error(problem)
    names = recipe_names()
    if folder := options.config_dir:
        if not folder.is_dir():
            parser.error(f"--config-dir {folder} is no folder; give that of recipe/NAME.yaml")
        names += recipe_names(folder)
        overrides = (*overrides, also_in(folder))
    config = _config(parser, recipe, overrides, names)
    findings, stdout = [], sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # libraries print, too
        for finding in diagnose(config, recipe, overrides):
            findings.append(finding)
            if not options.json:
                print(finding, file=stdout, flush=True)
    print(_document(recipe, overrides, findings) if options.json else _summary(findings))
    return int(any(finding.status == "error" for finding in findings))


def build_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m vapo_verl.doctor",
        description="Find problems before a run starts. Without a recipe: the machine only.",
        epilog=f"recipes: {' '.join(recipe_names())}. Exit code 0: no errors, 1: errors, "
        "2: bad usage.",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="+recipe=NAME key=value",
        help="a recipe and overrides, as for python -m vapo_verl.main",
    )
    parser.add_argument(
        "--config-dir",
        type=user_path,
        metavar="DIR",
        help="a folder with recipes of yours in DIR/recipe, as for python -m vapo_verl.main",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _split(
    parser: argparse.ArgumentParser, given: Sequence[str]
) -> tuple[str | None, tuple[str, ...]]:
    recipes = [item.removeprefix(RECIPE) for item in given if item.startswith(RECIPE)]
    overrides = tuple(item for item in given if not item.startswith(RECIPE))
    if len(recipes) > 1:
        parser.error(f"give one recipe, not {' and '.join(recipes)}")
    if overrides and not recipes:
        parser.error(f"{overrides[0]} changes a recipe; add +recipe=NAME")
    return (recipes[0] if recipes else None), overrides


def _config(
    parser: argparse.ArgumentParser,
    recipe: str | None,
    overrides: Sequence[str],
    names: Sequence[str],
) -> DictConfig | None:
    from hydra.errors import HydraException

    if recipe is None:
        return None
    if recipe not in names:
        parser.error(f"+recipe={recipe} is not known; use one of {', '.join(names)}")
    try:
        return composed(recipe, overrides)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        parser.error(str(error))


def _summary(findings: Sequence[Finding]) -> str:
    count = Counter(finding.status for finding in findings)
    return f"{count['error']} errors, {count['warning']} warnings, {count['ok']} ok"


def _document(recipe: str | None, overrides: Sequence[str], findings: Sequence[Finding]) -> str:
    count = Counter(finding.status for finding in findings)
    document = {
        "recipe": recipe,
        "overrides": list(overrides),
        "num_errors": count["error"],
        "num_warnings": count["warning"],
        "findings": [finding.as_dict() for finding in findings],
    }
    return json.dumps(document, indent=2)


def diagnose(
    config: DictConfig | None, recipe: str | None = None, overrides: Sequence[str] = ()
) -> Iterator[Finding]:
    """Every finding, in order. Without a config only the machine is checked.

    A child process composes the config again from ``recipe`` and ``overrides``.
    """
    from vapo_verl.doctor.child import check_imports

    on_cpu = config is None or config.trainer.device == "cpu"
    with ThreadPoolExecutor(1) as beside:  # its imports take as long as the other checks
        child = beside.submit(lambda: list(check_imports(recipe, overrides, on_cpu=on_cpu)))
        yield from light_findings(config)
        yield from child.result()


def light_findings(config: DictConfig | None) -> Iterator[Finding]:
    """The checks made in this process: all except imports and rows."""
    from vapo_verl.doctor.accelerator import check_accelerator
    from vapo_verl.doctor.disk import check_disk
    from vapo_verl.doctor.memory import check_limits
    from vapo_verl.doctor.ray_cluster import check_ray
    from vapo_verl.doctor.registrations import check_entry_point
    from vapo_verl.doctor.versions import check_compile_caches, check_compiler, check_versions

    yield from examine("versions", check_versions)
    yield from examine("registrations", check_entry_point)
    yield from examine("accelerator", check_accelerator, config)
    yield from examine("compiler", check_compiler, config)
    yield from examine("compile caches", check_compile_caches, config)
    yield from examine("ray", check_ray, config)
    yield from examine("disk", check_disk, config)
    yield from examine("limits", check_limits, config)
    if config is None:
        return
    from vapo_verl.doctor.budgets import check_recipe
    from vapo_verl.doctor.disk import check_resume
    from vapo_verl.doctor.memory import check_memory

    yield from examine("memory", check_memory, config)
    yield from examine("recipe", check_recipe, config)
    yield from examine("resume", check_resume, config)


if __name__ == "__main__":
    sys.exit(main())
