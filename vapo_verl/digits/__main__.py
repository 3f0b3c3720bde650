"""Command line: python -m vapo_verl.digits --out DIR."""

import argparse

from vapo_verl.cli_options import user_path


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write the data set."""
    parser = build_parser()
    options = parser.parse_args(arguments)

    from vapo_verl.digits.build import DigitsConfig, write_dataset

    given = {
        key: value for key, value in vars(options).items() if key != "out" and value is not None
    }
    try:
        for path in write_dataset(options.out, DigitsConfig(**given)).values():
            print(path)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--out {options.out}: {error}; name a folder that you may write")


def build_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(prog="python -m vapo_verl.digits", description=main.__doc__)
    parser.add_argument("--out", type=user_path, required=True, help="folder of the parquet files")
    for split in ("train", "val", "test"):
        parser.add_argument(f"--{split}", type=int, help=f"rows of {split}.parquet")
    parser.add_argument("--seed", type=int, help="seed of scenes, questions and claims")
    parser.add_argument("--grids", type=_names, help="comma-separated grid shapes, such as 2x2,2x3")
    parser.add_argument(
        "--questions",
        help="standard (the default); long: about all cells of a grid, best of 3x3; parts: the "
        "long ones with several parts; lines: about two lines of a 3x3 grid",
    )
    parser.add_argument(
        "--claim-kinds",
        type=_names,
        help="comma-separated kinds of claims, such as identity,color (default: all)",
    )
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


if __name__ == "__main__":
    main()
