"""Builds a row in our format from one of a published data set."""

from vapo_verl.data.importers.held_out import is_held_out
from vapo_verl.data.importers.image_entries import as_written
from vapo_verl.data.importers.options import ImportOptions
from vapo_verl.data.importers.source_row import SourceRow
from vapo_verl.data.prompt import build_prompt


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
