"""All the text of the digits world, for the tokenizer."""

from __future__ import annotations

import random
from collections.abc import Iterator

from vapo_verl.data.digits.questions import sample_question
from vapo_verl.data.digits.scans import scan_pool
from vapo_verl.data.digits.scene import parse_grid, sample_scene
from vapo_verl.data.digits.selection import sample_claims
from vapo_verl.small_model.texts import ANCHOR_TEXT, READ_PROMPT, VERDICTS

GRIDS = ("2x2", "2x3", "3x2", "3x3")
_ROLES = "system\nuser\nassistant\n"


def corpus(num_scenes: int = 600) -> Iterator[str]:
    """Yield questions, responses and anchor texts of seeded scenes, and the words around them."""
    yield _ROLES
    yield READ_PROMPT
    yield from VERDICTS.values()
    yield from (word.strip() for word in VERDICTS.values())
    for index in range(num_scenes):
        rng = random.Random(f"corpus/{index}")
        rows, cols = parse_grid(GRIDS[index % len(GRIDS)])
        scene = sample_scene(rng, scan_pool("train"), rows, cols)
        question = sample_question(rng, scene)
        yield f"{question.text}\n{question.response}"
        for item in sample_claims(rng, scene):
            yield ANCHOR_TEXT.format(claim=item.claim.text)
