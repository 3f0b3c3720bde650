"""The progress bar of all commands that go through rows."""

from typing import Any

from tqdm import tqdm


def progress_bar(total: int, *, unit: str, done: int = 0) -> "tqdm[Any]":
    """A bar on stderr with the time left; silent where stderr is no terminal.

    Args:
        done: of `total`, finished by an earlier run.
    """
    return tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True, disable=None)
