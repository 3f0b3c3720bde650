"""`generate`: claims for every image, from any OpenAI-compatible endpoint."""

import argparse
import os
from contextlib import nullcontext
from pathlib import Path

from vapo_verl.claims.images import ImageItem
from vapo_verl.claims.job import Job, Make, image_tokens, run_job, source_images, text_tokens
from vapo_verl.claims.making.maker import ClaimMaker, task_text
from vapo_verl.claims.options import MakeOptions, RunOptions, endpoint_from
from vapo_verl.claims.report import Figures, RunCounts, describe_folder, folder_figures
from vapo_verl.claims.requests.retry import PatientAsker
from vapo_verl.claims.shards import Usage, read_records
from vapo_verl.cli_options import options_from

_TOKENS_PER_CLAIM = 30
"""Estimate for one line of an answer: twelve words and the JSON around them."""


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit code is that of `job.run_job`."""
    options = options_from(RunOptions, arguments)
    endpoint = endpoint_from(os.environ, arguments)
    job = make_job(endpoint.model, options, options_from(MakeOptions, arguments))
    return run_job(job, options, lambda: nullcontext(endpoint))


def make_job(model: str, options: RunOptions, making: MakeOptions) -> Job:
    """The job of making claims with `model`."""

    def maker(asker: PatientAsker, counts: RunCounts) -> Make:
        return ClaimMaker(
            asker,
            making,
            counts,
            model=model,
            seed=options.seed,
            max_pixels=options.max_pixels,
        ).make

    def cost(item: ImageItem) -> Usage:
        prompt_tokens = image_tokens(item, options.max_pixels)
        return Usage(
            num_requests=1,
            prompt_tokens=prompt_tokens + text_tokens(task_text(making.rules)),
            completion_tokens=making.rules.num_claims * _TOKENS_PER_CLAIM,
        )

    return Job(
        model=model,
        images=lambda on_problem: source_images(options, on_problem),
        cost=cost,
        maker=maker,
        totals=_totals,
    )


def _totals(folder: Path) -> tuple[Figures, str]:
    figures = folder_figures(read_records(folder))
    return figures, describe_folder(figures)
