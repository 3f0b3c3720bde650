"""The row format, and the check of a parquet file against it.

A row is veRL's (`RLHFDataset`) plus `claims`:

    prompt        list of {role, content}; one `<image>` in the content per image
    images        list of {bytes, path} structs, or of paths / addresses; may be absent (text only)
    data_source   name of the data set
    reward_model  {style, ground_truth}
    extra_info    struct or null
    claims        list of {text: string, label: bool}; absent, null or empty: the plain reward
"""

from pathlib import Path

from vapo_verl.data.claims_column import CLAIMS_PER_IMAGE, Claim
from vapo_verl.data.parquet_stream import iter_rows, open_parquet, require_columns
from vapo_verl.data.problem_log import ProblemLog
from vapo_verl.data.report import CheckReport
from vapo_verl.data.row_tally import RowTally

__all__ = ["OPTIONAL_COLUMNS", "REQUIRED_COLUMNS", "CheckReport", "Claim", "check_parquet"]

REQUIRED_COLUMNS = ("prompt", "data_source", "reward_model")
OPTIONAL_COLUMNS = ("images", "extra_info", "claims")
_IMPORT_FIRST = "run `python -m vapo_verl.data import-vapo-thinker` or `import-plain` on it"


def check_parquet(
    path: str | Path,
    *,
    key: str = "file",
    min_claims: int = CLAIMS_PER_IMAGE,
    max_images_checked: int | None = None,
    decode_images: bool = False,
    shown_per_kind: int = 5,
) -> CheckReport:
    """Stream a data file and check every row; problems are reported together, not one at a time.

    Args:
        key: where the path was given (`data.train_files`), for the messages.
        min_claims: rows with fewer claims are counted (not refused).
        max_images_checked: open at most this many images; None opens all of them.
        decode_images: read all pixels: slower, and finds cut-off JPEG data too.
        shown_per_kind: lines per kind of problem in the message; the others are counted.

    Raises:
        FileError: missing, not parquet, empty, or without a required column.
        RowError: rows that cannot be trained on.
    """
    tally = RowTally(min_claims, max_images_checked, decode_images)
    log = ProblemLog(shown_per_kind)
    columns = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    with open_parquet(path, key=key) as parquet:
        require_columns(parquet, REQUIRED_COLUMNS, path=str(path), fix=_IMPORT_FIRST)
        for number, row in iter_rows(parquet, columns, path=path, key=key):
            for bad_cell in tally.add(row):
                log.add(bad_cell.at(number), str(path))
    log.raise_if_any()
    return tally.report(str(path))
