"""The rules by name; a rule's module is imported on first use."""

import importlib
import re
from collections.abc import Sequence
from pathlib import Path

from vapo_verl.data.errors import BadCell, ProblemLog
from vapo_verl.evaluation.benchmarks import BenchmarkError, BenchmarkRow, Rule

RULES = {
    "mathvista": "mathvista",
    "mathverse": "mathverse",
    "mathvision": "mathvision",
    "logicvista": "logicvista",
    "wemath": "wemath",
    "mmmu": "mmmu",
    "mmstar": "mmstar",
    "hallusionbench": "hallusionbench",
    "geo3k": "geo3k",
    "mmvet": "mmvet",
    "mmk12": "mmk12",
    "mcq": "generic:MCQ",
    "yes-no": "generic:YES_NO",
    "free-form": "generic:FREE_FORM",
}
"""Name -> module of this folder; its `RULE` (or the name after the colon) is the rule."""
_FILE_NAMES = (
    ("mathvista", "mathvista"),
    ("mathverse", "mathverse"),
    ("mathvision", "mathvision"),
    ("logicvista", "logicvista"),
    ("wemath", "wemath"),
    ("mmmu", "mmmu"),
    ("mmstar", "mmstar"),
    ("hallusion", "hallusionbench"),
    ("geo3k", "geo3k"),
    ("geometry3k", "geo3k"),
    ("mmvet", "mmvet"),
    ("mmk12", "mmk12"),
)


def find_rule(name: str) -> Rule:
    """The rule of this name.

    Raises:
        BenchmarkError: no such rule; the message lists all of them.
    """
    if name not in RULES:
        raise BenchmarkError(f"--rules {name}: no such rule; pick one of {', '.join(RULES)}")
    module, _, attribute = RULES[name].partition(":")
    found = getattr(importlib.import_module(f"{__name__}.{module}"), attribute or "RULE")
    assert isinstance(found, Rule)
    return found


def rule_name_of(benchmark: str) -> str | None:
    """The rule for a file or data set of this name (`MathVerse_MINI_Vision_Only`), or None."""
    plain = re.sub("[^a-z0-9]", "", benchmark.casefold())
    return next((rule for part, rule in _FILE_NAMES if part in plain), None)


def check_rows(rule: Rule, rows: Sequence[BenchmarkRow], path: Path) -> None:
    """Try the rule on every row before a model is asked: the prompt, and grading an empty answer.

    Raises:
        RowError: rows that the rule cannot use, one line each, with row, column and fix.
    """
    log = ProblemLog()
    for row in rows:
        try:
            if row.images and not row.messages:
                rule.prompt(row)
            rule.grade(row, "")
        except BadCell as problem:
            log.add(problem.at(row.number), str(path))
    log.raise_if_any()
