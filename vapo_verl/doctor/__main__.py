"""Command line: python -m vapo_verl.doctor [+recipe=NAME key=value ...] [--json]

Exit code 0: no errors. 1: errors. 2: bad usage.
"""

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Sequence

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vapo_verl.doctor.checkup import diagnose
from vapo_verl.doctor.findings import Finding
from vapo_verl.hydra_config import recipe_names
from vapo_verl.launch import composed

RECIPE = "+recipe="


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    recipe, overrides = _split(parser, options.overrides)
    config = _config(parser, recipe, overrides)
    findings, stdout = [], sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # libraries print, too
        for finding in diagnose(config, recipe, overrides):
            findings.append(finding)
            if not options.json:
                print(finding, file=stdout, flush=True)
    print(_document(recipe, overrides, findings) if options.json else _summary(findings))
    return int(any(finding.status == "error" for finding in findings))


def _parser() -> argparse.ArgumentParser:
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
    parser: argparse.ArgumentParser, recipe: str | None, overrides: Sequence[str]
) -> DictConfig | None:
    from hydra.errors import HydraException

    if recipe is None:
        return None
    if recipe not in recipe_names():
        parser.error(f"+recipe={recipe} is not known; use one of {', '.join(recipe_names())}")
    try:
        return composed(recipe, overrides)
    except (HydraException, OmegaConfBaseException) as problem:
        parser.error(str(problem))


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


if __name__ == "__main__":
    sys.exit(main())
