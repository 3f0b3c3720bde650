"""Images on their way from a source file into ours: as absolute paths, or as bytes."""

import os
from pathlib import Path

import pyarrow as pa

from vapo_verl.data.errors import BadCell
from vapo_verl.data.image_cell import image_source, is_remote, local_path

_SET_ROOT = "give the folder that the paths start from as --image-root"


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
