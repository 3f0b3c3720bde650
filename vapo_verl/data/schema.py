"""The Arrow schema of the files that all importers write, so that they can be mixed."""

import pyarrow as pa

_TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_CLAIM = pa.struct([("text", pa.string()), ("label", pa.bool_())])
_REWARD_MODEL = pa.struct([("style", pa.string()), ("ground_truth", pa.string())])
_EXTRA_INFO = pa.struct([("split", pa.string()), ("index", pa.int64()), ("source_id", pa.string())])


def row_schema(*, embedded_images: bool) -> pa.Schema:
    """Columns of a data file; images are structs with bytes if embedded, else paths.

    Files of the two kinds cannot be loaded as one data set.
    """
    return pa.schema(
        [
            ("prompt", pa.list_(_TURN)),
            ("images", pa.list_(_IMAGE if embedded_images else pa.string())),
            ("data_source", pa.string()),
            ("reward_model", _REWARD_MODEL),
            ("extra_info", _EXTRA_INFO),
            ("claims", pa.list_(_CLAIM)),
        ]
    )
