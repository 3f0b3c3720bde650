"""The `claims` column of Arrow tables."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from vapo_verl.data.claims_column import Claim
from vapo_verl.data.schema import row_schema

CLAIMS = "claims"
_FIELD = row_schema(embedded_images=True).field(CLAIMS)


def with_claims(schema: pa.Schema) -> pa.Schema:
    """The schema with the `claims` column: in its old place, else last.

    Its metadata stays as it is. The `datasets` library keeps the features of columns in there, and
    takes a column that they do not name, or name otherwise, from the schema.
    """
    if CLAIMS in schema.names:
        return schema.set(schema.get_field_index(CLAIMS), _FIELD)
    return schema.append(_FIELD)


def set_claims(table: pa.Table, claims: Sequence[tuple[Claim, ...]]) -> pa.Table:
    """The table with these claims, a tuple for each row; where the schema has them, so has it."""
    cells = pa.array([[claim.as_dict() for claim in row] for row in claims], _FIELD.type)
    if CLAIMS in table.schema.names:
        return table.set_column(table.schema.get_field_index(CLAIMS), _FIELD, cells)
    return table.append_column(_FIELD, cells)


def num_filled(batch: pa.RecordBatch) -> int:
    """Rows of the batch whose `claims` are neither null nor an empty list."""
    column = batch.column(CLAIMS)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return pc.sum(pc.greater(pc.list_value_length(column), 0)).as_py() or 0
    return len(column) - column.null_count
