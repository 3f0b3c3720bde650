"""`check`: let a model vote on stored claims, and write the confirmed ones to new shards."""

import argparse
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from vapo_verl.claims.images import ImageItem, OnProblem
from vapo_verl.claims.job import Job, Make, image_tokens, run_job, source_images, text_tokens
from vapo_verl.claims.making.judge import Agreement, ClaimJudge, measure_agreement
from vapo_verl.claims.making.maker import question_text
from vapo_verl.claims.options import CheckOptions, RunOptions, endpoint_from
from vapo_verl.claims.report import Figures, RunCounts, describe_folder, folder_figures
from vapo_verl.claims.requests.retry import PatientAsker
from vapo_verl.claims.shards import RecordIndex, Usage, VoteCount, read_records
from vapo_verl.cli_options import options_from
from vapo_verl.data.claims_column import is_balanced
from vapo_verl.data.errors import FileError

_TOKENS_PER_VOTE = 2


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit code is that of `job.run_job`.

    Raises:
        FileError: CLAIMS_DIR has no records, or --out is the same folder.
    """
    options = options_from(RunOptions, arguments)
    checking = options_from(CheckOptions, arguments)
    if checking.claims.resolve() == options.out.resolve():
        raise FileError(f"--out: {options.out} is also CLAIMS_DIR; give another folder")
    endpoint = endpoint_from(os.environ, arguments)
    records = RecordIndex(checking.claims)
    job = check_job(endpoint.model, options, checking, records)
    return run_job(job, options, lambda: nullcontext(endpoint))


def check_job(model: str, options: RunOptions, checking: CheckOptions, records: RecordIndex) -> Job:
    """The job in which `model` votes on `records`."""

    def images(on_problem: OnProblem) -> Iterator[ImageItem]:
        return (item for item in source_images(options, on_problem) if item.key in records)

    def maker(asker: PatientAsker, counts: RunCounts) -> Make:
        return ClaimJudge(
            asker,
            checking,
            records,
            model=model,
            seed=options.seed,
            max_pixels=options.max_pixels,
        ).make

    def cost(item: ImageItem) -> Usage:
        return _cost(item, records, options, checking)

    def totals(folder: Path) -> tuple[Figures, str]:
        return _totals(folder, num_records=len(records))

    return Job(model=model, images=images, cost=cost, maker=maker, totals=totals)


def _cost(
    item: ImageItem, records: RecordIndex, options: RunOptions, checking: CheckOptions
) -> Usage:
    claims = records[item.key].claims
    prompt = sum(text_tokens(question_text(claim.text)) for claim in claims)
    prompt += len(claims) * image_tokens(item, options.max_pixels)
    num_prompts = checking.votes if checking.separate_votes else 1
    return Usage(
        num_requests=len(claims) * num_prompts,
        prompt_tokens=prompt * num_prompts,
        completion_tokens=len(claims) * checking.votes * _TOKENS_PER_VOTE,
    )


def _totals(folder: Path, *, num_records: int) -> tuple[Figures, str]:
    """Figures of the checked records; images of CLAIMS_DIR that are not checked are counted."""
    agreement = measure_agreement(_vote_counts(folder))
    figures = folder_figures(read_records(folder))
    num_checked = figures["images"]
    assert isinstance(num_checked, int)
    unbalanced = sum(not is_balanced(record.claims) for record in read_records(folder))
    figures |= {
        "not_checked": num_records - num_checked,
        "unbalanced_images": unbalanced,
        "agreement": asdict(agreement) | {"fraction_undecided": agreement.fraction_undecided},
    }
    lines = [
        f"{describe_folder(figures)}; {unbalanced} images out of balance",
        f"records without an image in SOURCE, or not checked yet: {num_records - num_checked}",
        describe_agreement(agreement),
    ]
    return figures, "\n".join(lines)


def _vote_counts(folder: Path) -> Iterator[VoteCount]:
    for record in read_records(folder):
        yield from record.vote_counts or ()


def describe_agreement(agreement: Agreement) -> str:
    """The figures in two lines; a dash for None."""
    return (
        f"votes agree with labels: {_percent(agreement.rate)}"
        f" (true {_percent(agreement.rate_true)}, false {_percent(agreement.rate_false)}),"
        f" kappa {_number(agreement.kappa)}, undecided {_percent(agreement.fraction_undecided)}\n"
        f"votes agree with each other: unanimous {_percent(agreement.fraction_unanimous)},"
        f" mean entropy {_number(agreement.mean_vote_entropy)} bits"
    )


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
