"""`attach`: join claims to the rows of a training file by their images.

The claims of a folder go into the `claims` column of a copy of TRAIN; all other columns stay as
they are. Images are matched by the SHA-256 of the stored file: a renamed file keeps its claims, a
re-encoded image loses them.
"""

import argparse

from vapo_verl.claims.options import AttachOptions
from vapo_verl.cli_options import add_options, options_from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, AttachOptions)


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print the coverage; errors as `attach_claims`."""
    from vapo_verl.claims.attach.files import attach_claims  # pyarrow is slow to import

    print(attach_claims(options_from(AttachOptions, arguments)))
    return 0
