"""Builds a row in our format from one of a published data set: prompt, images, split."""

import hashlib
import os
from pathlib import Path

import pyarrow as pa

from vapo_verl.data.errors import BadCell
from vapo_verl.data.images import image_source, is_remote, local_path
from vapo_verl.data.importers.import_options import ImportOptions
from vapo_verl.data.importers.source_row import SourceRow
from vapo_verl.data.schema import build_prompt

_SET_ROOT = "give the folder that the paths start from as --image-root"


def build_row(
    row: SourceRow, *, index: int, place: str, embed: bool, options: ImportOptions
) -> dict[str, object]:
    """The row as `schema.row_schema` has it; `extra_info.split` is "val" if it is held out.

    Args:
        index: number of the row among those of all sources.
        place: stands for the source's own id where it has none.
        embed: write the bytes of image files.

    Raises:
        BadCell: an image is missing or cannot be embedded.
    """
    root = options.image_root
    held_out = is_held_out(row, fraction=options.val_fraction, seed=options.seed)
    return {
        "prompt": build_prompt(row.question, len(row.images)),
        "images": [as_written(entry, image_root=root, embed=embed) for entry in row.images],
        "data_source": options.data_source,
        "reward_model": {"style": "rule", "ground_truth": row.answer},
        "extra_info": {
            "split": "val" if held_out else options.split,
            "index": index,
            "source_id": row.source_id or place,
        },
        "claims": [claim.as_dict() for claim in row.claims],
    }


def is_held_out(row: SourceRow, *, fraction: float, seed: int) -> bool:
    """Draw by a hash of the row's first image (its question, if it has none) and the seed.

    All questions on one image fall to the same side, whatever the order of the rows.
    """
    if fraction == 0:
        return False
    first = image_source(row.images[0]) if row.images else row.question
    content = first if isinstance(first, bytes) else first.encode()
    digest = hashlib.blake2b(f"{seed}:".encode() + content, digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def holds_paths(column: pa.DataType) -> bool:
    """Whether a source's image column is of paths (one or a list), not of structs with bytes."""
    if pa.types.is_list(column) or pa.types.is_large_list(column):
        column = column.value_type
    return pa.types.is_string(column) or pa.types.is_large_string(column)


def as_written(entry: object, *, image_root: Path, embed: bool) -> object:
    """The entry for our `images` column: a struct with bytes if `embed`, else an absolute path.

    Addresses are kept as they are where paths are written; they cannot be embedded.

    Raises:
        BadCell: the file is missing, the entry names no image, or an address is to be embedded.
    """
    source = image_source(entry)
    if isinstance(entry, str) and isinstance(source, bytes) and not embed:
        return entry  # a data URI
    if isinstance(source, bytes):
        path = entry.get("path") if isinstance(entry, dict) else None
        return {"bytes": source, "path": path}
    if is_remote(source):
        if embed:
            raise BadCell("images", f"cannot embed {source!r}", "download it and give its path")
        return source
    path = Path(os.path.abspath(image_root / local_path(source)))
    if not path.is_file():
        raise BadCell("images", f"no file {str(path)!r}", _SET_ROOT)
    return {"bytes": path.read_bytes(), "path": path.name} if embed else str(path)
