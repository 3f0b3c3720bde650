"""The Arrow schema and the prompt that all importers write, so that their files can be mixed."""

import pyarrow as pa

from vapo_verl.data.cells import IMAGE_PLACEHOLDER

_TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_CLAIM = pa.struct([("text", pa.string()), ("label", pa.bool_())])
_REWARD_MODEL = pa.struct([("style", pa.string()), ("ground_truth", pa.string())])
_EXTRA_INFO = pa.struct([("split", pa.string()), ("index", pa.int64()), ("source_id", pa.string())])
PROMPT_SUFFIX = (
    "Look at the image and think the question through inside <think> </think>. "
    "Then state only the final answer inside \\boxed{}."
)
"""Asks for the form that the format reward checks."""


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


def build_prompt(question: str, num_images: int) -> list[dict[str, str]]:
    """One user turn: the question, a placeholder per image in front if it has none, the suffix.

    Placeholders that the question brings stay where they are.
    """
    question = question.strip()
    if IMAGE_PLACEHOLDER not in question:
        question = IMAGE_PLACEHOLDER * num_images + question
    return [{"role": "user", "content": f"{question}\n{PROMPT_SUFFIX}"}]
