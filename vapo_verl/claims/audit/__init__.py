"""`audit`: let people judge a random sample of claims, and sum up what they found.

python -m vapo_verl.claims audit CLAIMS_DIR SOURCE --out audit.html
python -m vapo_verl.claims audit --summary VERDICTS.json [VERDICTS.json ...]

The first writes one page that works without a network; the second reads what the page exports.
"""

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("claims_dir", type=Path, nargs="?", metavar="CLAIMS_DIR", help="left by generate or check")
    add("source", type=Path, nargs="?", metavar="SOURCE", help="parquet file or folder of images")
    add("--out", type=Path, metavar="audit.html", help="the page to write")
    add("--column", default="images", help="where a parquet SOURCE has its images (%(default)s)")
    add("--num-images", type=int, default=50, metavar="N", help="size of the sample (%(default)s)")
    add("--seed", type=int, default=0, help="another seed, another sample (%(default)s)")
    add(
        "--summary",
        type=Path,
        nargs="+",
        metavar="VERDICTS.json",
        help="print what exported verdicts say, and how far people agree; writes no page",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the page, or print the summary.

    Raises:
        ValueError: arguments that do not fit together, or files that cannot be used.
    """
    _check(arguments)
    if arguments.summary:
        from vapo_verl.claims.audit.summary import summarise

        print(summarise(arguments.summary))
        return 0
    # pyarrow and pillow are slow to import
    from vapo_verl.claims.audit.page import write_page
    from vapo_verl.claims.audit.sample import draw_sample

    images = draw_sample(
        arguments.claims_dir,
        arguments.source,
        column=arguments.column,
        num_images=arguments.num_images,
        seed=arguments.seed,
    )
    if len(images) < arguments.num_images:
        found = f"only {len(images)} images of {arguments.source} have claims"
        print(f"--num-images is {arguments.num_images}, but {found}: all taken", file=sys.stderr)
    write_page(arguments.out, images, seed=arguments.seed)
    num_claims = sum(len(image.claims) for image in images)
    print(f"{arguments.out}: {len(images)} images, {num_claims} claims; open it in a browser")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    wanted = ("claims_dir", "source", "out")
    given = [name for name in wanted if getattr(arguments, name) is not None]
    if arguments.summary and given:
        raise ValueError(f"--summary reads exported verdicts only; leave out {', '.join(given)}")
    if not arguments.summary and len(given) < len(wanted):
        raise ValueError("give CLAIMS_DIR, SOURCE and --out for a page, or --summary VERDICTS.json")
    if arguments.num_images < 1:
        raise ValueError(f"--num-images is {arguments.num_images}, want at least 1")
