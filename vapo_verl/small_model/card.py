"""The model card: what the packaged model is, how it was made and what it can do."""

from __future__ import annotations

from typing import Any

_COLUMNS = ("format_rate", "accuracy", "claims_at_start", "claims_at_end", "yes_rate")

_CARD = """\
# A small Qwen2.5-VL that reads grids of handwritten digits

{parameters:,} parameters, stored in bfloat16. It answers questions about grids of coloured digits
(`vapo_verl.data.digits`) in the form `<think>...</think>\\boxed{{...}}`, and says ` Yes` or ` No`
after `\\n<anchor>{{claim}} Is this claim correct? Answer (Yes/No):`. It is a starting point for
reinforcement learning in tests and in the demo, stopped on purpose before it was good, and is of no
other use.

Made by `{command}` on {date}, on {machine}, in {minutes:.0f} minutes, seed {seed}.
Training saw the train scans only (UCI handwritten digits as shipped with scikit-learn).

## Figures on unseen test scans
{num_rows} rows of each grid, weights loaded in float32, 10 claims a row. `claims_at_start` is
judged right behind the prompt, `claims_at_end` behind the reasoning. "Other image" swaps images
between rows: what text alone can do.

{table}

## Losses of a rehearsal
First steps of the tower: {tower}. Then two steps of every part of the warm-up, response / verdict:
{warm_up}.
`first_steps.json` holds them in full, and a test makes them again.
"""


def model_card(figures: dict[str, Any], first: dict[str, list], **facts: Any) -> str:
    """Return the card as Markdown.

    Args:
        figures: `recipe.measure`'s result.
        first: `first_steps.first_losses`' result.
        facts: parameters, command, date, machine, minutes, seed and num_rows.
    """
    warm_up = (f"{loss['response']:.3f} / {loss['verdict']:.3f}" for loss in first["warm_up"])
    return _CARD.format(
        table=_table(figures),
        tower=", ".join(f"{loss:.3f}" for loss in first["tower"]),
        warm_up=", ".join(warm_up),
        **facts,
    )


def _table(figures: dict[str, Any]) -> str:
    lines = [f"| grid | responses | {' | '.join(_COLUMNS)} |", "|---|---|" + "---|" * len(_COLUMNS)]
    for grid, conditions in figures.items():
        for condition, shares in conditions.items():
            cells = " | ".join(f"{shares[column]:.3f}" for column in _COLUMNS)
            lines.append(f"| {grid} | {condition} | {cells} |")
    return "\n".join(lines)
