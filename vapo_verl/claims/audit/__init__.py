"""`audit`: let people judge a random sample of claims, and summarise their answers.

python -m vapo_verl.claims audit CLAIMS_DIR SOURCE --out audit.html
python -m vapo_verl.claims audit --summary ANSWERS.json [ANSWERS.json ...]

The first writes one page that works without a network; the second reads what the page exports.
"""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

from vapo_verl.cli_options import add_options, cli, options_from
from vapo_verl.data.errors import number_of, require_other_file, require_output


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOptions:
    """The page to write, or the answers to sum up."""

    claims_dir: Path | None = field(default=None, metadata=cli(positional="CLAIMS_DIR"))
    """Folder written by generate or check."""
    source: Path | None = field(default=None, metadata=cli(positional="SOURCE"))
    """Parquet file or folder of images."""
    out: Path | None = field(default=None, metadata=cli(metavar="audit.html"))
    """The page to write."""
    column: str = "images"
    """Image column of a parquet SOURCE."""
    image_root: Path = Path()
    """Where relative image paths in parquet rows start."""
    num_images: int = field(default=50, metadata=cli(metavar="N"))
    """Size of the sample."""
    seed: int = 0
    """Selects the sample."""
    summary: tuple[Path, ...] | None = field(default=None, metadata=cli(metavar="ANSWERS.json"))
    """Summarise exported answers and the agreement of people; write no page."""

    def __post_init__(self) -> None:
        wanted = ("claims_dir", "source", "out")
        given = [name for name in wanted if getattr(self, name) is not None]
        if self.summary and given:
            left_out = ", ".join(given)
            raise ValueError(f"--summary reads exported answers only; leave out {left_out}")
        if not self.summary and len(given) < len(wanted):
            raise ValueError(
                "give CLAIMS_DIR, SOURCE and --out for a page, or --summary ANSWERS.json"
            )
        if self.out is not None and self.source is not None:
            require_output(self.out)
            require_other_file(self.out, self.source)
        if self.num_images < 1:
            raise ValueError(f"--num-images is {self.num_images}, want at least 1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, AuditOptions)


def run(arguments: argparse.Namespace) -> int:
    """Write the page, or print the summary.

    Raises:
        ValueError: arguments that do not fit together, or files that cannot be used.
    """
    options = options_from(AuditOptions, arguments)
    if options.summary:
        from vapo_verl.claims.audit.page import summarise

        print(summarise(options.summary))
        return 0
    # pyarrow and pillow are slow to import
    from vapo_verl.claims.audit.page import draw_sample, write_page

    assert options.claims_dir and options.source and options.out
    unreadable: list[str] = []
    try:
        images = draw_sample(
            options.claims_dir,
            options.source,
            column=options.column,
            image_root=options.image_root,
            num_images=options.num_images,
            seed=options.seed,
            on_problem=lambda problem, path: unreadable.append(problem.describe(path)),
        )
    finally:  # it may also be why no image has claims
        if unreadable:
            count = number_of(len(unreadable), "unreadable image")
            print(f"{count} passed over, the first: {unreadable[0]}", file=sys.stderr)
    if len(images) < options.num_images:
        found = f"only {len(images)} images of {options.source} have claims"
        print(f"--num-images is {options.num_images}, but {found}: all taken", file=sys.stderr)
    write_page(options.out, images, seed=options.seed)
    num_claims = sum(len(image.claims) for image in images)
    print(f"{options.out}: {len(images)} images, {num_claims} claims; open it in a browser")
    return 0
