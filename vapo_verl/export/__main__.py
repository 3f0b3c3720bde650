"""Command line: a checkpoint as a model folder.

python -m vapo_verl.export RUN_DIR [--step N] [--out DIR]

writes a Hugging Face folder (RUN_DIR/model_step_N) that transformers and vLLM load: weights,
tokenizer, processor, generation config and a model card. Needs no GPU. Exit codes: 0 written,
2 nothing to export or a place that cannot be written.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vapo_verl.export.source import ExportError

BAD_INPUT, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Export; returns 2, with the message on stderr, for what a person has to mend."""
    options = _parser().parse_args(arguments)
    from vapo_verl.export.model_folder import write_model_folder  # not for --help

    try:
        print(write_model_folder(options.run_dir, options.step, options.out))
    except (ExportError, OSError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vapo_verl.export", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("run_dir", type=Path, metavar="RUN_DIR", help="a run's trainer.default_local_dir")
    add("--step", type=int, metavar="N", help="which checkpoint (the newest whole one)")
    add("--out", type=Path, metavar="DIR", help="folder to make (RUN_DIR/model_step_N)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
