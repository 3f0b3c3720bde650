"""Checks rows one after the other and sums up what a report tells of them."""

from collections import Counter
from dataclasses import fields
from typing import Any

from vapo_verl.data.cells import check_answer, check_images_match, check_prompt, check_source
from vapo_verl.data.claims_column import (
    has_contradiction,
    has_duplicates,
    is_balanced,
    read_claims,
)
from vapo_verl.data.errors import BadCell
from vapo_verl.data.image_cell import check_image, is_remote
from vapo_verl.data.report import CheckReport


class RowTally:
    """Running counts over the rows of one file; constant memory."""

    def __init__(self, min_claims: int, max_images: int | None, decode: bool):
        self._min_claims, self._max_images, self._decode = min_claims, max_images, decode
        self._count: Counter[str] = Counter()

    def add(self, row: dict[str, object]) -> list[BadCell]:
        """Check and count a row; returns its problems, at most one per check."""
        self._count["num_rows"] += 1
        problems = []
        checks = (self._add_images, self._check_answer, self._check_source, self._add_claims)
        for check in checks:
            try:
                check(row)
            except BadCell as problem:
                problems.append(problem)
        return problems

    def report(self, path: str) -> CheckReport:
        counted = {field.name for field in fields(CheckReport)} - {"path", "min_claims"}
        counts = {name: self._count[name] for name in counted}
        return CheckReport(path=path, min_claims=self._min_claims, **counts)

    def _check_answer(self, row: dict[str, object]) -> None:
        check_answer(row["reward_model"])

    def _check_source(self, row: dict[str, object]) -> None:
        check_source(row["data_source"], row["extra_info"])

    def _add_images(self, row: dict[str, Any]) -> None:
        check_prompt(row["prompt"])
        sources = check_images_match(row["prompt"], row["images"])
        self._count["num_images"] += len(sources)
        self._count["rows_without_images"] += not sources
        for source in sources:
            self._open(source)

    def _open(self, source: bytes | str) -> None:
        limit_reached = self._count["num_images_opened"] == self._max_images
        if limit_reached or is_remote(source):
            return
        self._count["num_images_opened"] += 1
        check_image(source, decode=self._decode)

    def _add_claims(self, row: dict[str, object]) -> None:
        claims = read_claims(row["claims"])
        self._count["num_claims"] += len(claims)
        self._count["num_true_claims"] += sum(claim.label for claim in claims)
        self._count["rows_without_claims"] += not claims
        self._count["rows_short_of_claims"] += 0 < len(claims) < self._min_claims
        self._count["rows_unbalanced"] += not is_balanced(claims)
        self._count["rows_with_duplicate_claims"] += has_duplicates(claims)
        self._count["rows_with_contradiction"] += has_contradiction(claims)
