"""Command line: a checkpoint as a model folder.

python -m vapo_verl.export RUN_DIR [--step N] [--out DIR]

writes a Hugging Face folder (RUN_DIR/model_step_N) that transformers and vLLM load: weights,
tokenizer, processor, generation config and a model card. Adapters (LoRA) are merged into the
weights, or written alone with --adapter. Needs no GPU. Exit codes: 0 written, 2 nothing to export
or an output that cannot be written.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vapo_verl.cli_options import add_options, cli, options_from
from vapo_verl.export.source import ExportError

BAD_INPUT, INTERRUPTED = 2, 130


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Which checkpoint, and where to."""

    run_dir: Path = field(metadata=cli(positional="RUN_DIR"))
    """A run's trainer.default_local_dir."""
    step: int | None = field(default=None, metadata=cli(metavar="N"))
    """Which checkpoint (the newest complete one)."""
    out: Path | None = field(default=None, metadata=cli(metavar="DIR"))
    """Folder to make (RUN_DIR/model_step_N, or adapter_step_N)."""
    adapter: bool = False
    """The adapters of a LoRA run alone, as peft writes them (RUN_DIR/adapter_step_N)."""
    dtype: str = field(default="bfloat16", metadata=cli(choices=("bfloat16", "float32")))
    """Of the weights."""
    allow_nonfinite: bool = False
    """Also write weights that are nan or infinite, to inspect a run that diverged."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Export; returns 2, with the message on stderr, for errors that a user has to fix."""
    options = options_from(ExportOptions, build_parser().parse_args(arguments))
    from vapo_verl.export.model_folder import write_model_folder  # not for --help

    try:
        folder = write_model_folder(
            options.run_dir,
            options.step,
            options.out,
            allow_nonfinite=options.allow_nonfinite,
            dtype=options.dtype,
            adapter=options.adapter,
        )
        print(folder)
    except (ExportError, OSError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(prog="python -m vapo_verl.export", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_options(parser, ExportOptions)
    return parser


if __name__ == "__main__":
    sys.exit(main())
