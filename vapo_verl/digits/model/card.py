"""The model card: what a model of the recipe is, how it was made and what it can do."""

from typing import Any

from vapo_verl.digits.model.evaluate import GROUP_SIZE

_SHARES = ("format_rate", "accuracy", "claims_at_start", "claims_at_end", "yes_rate")
_TOKENS = ("mean_tokens", "p10_tokens", "p90_tokens")

_CARD = """\
# A small Qwen2.5-VL that reads grids of handwritten digits

{parameters:,} parameters, stored in bfloat16. It answers questions about grids of coloured digits
(`vapo_verl.digits`) in the form `<think>...</think>\\boxed{{...}}`, and says ` Yes` or ` No`
after `\\n<anchor>{{claim}} Is this claim correct? Answer (Yes/No):`. It is a starting point for
reinforcement learning, left on purpose with much to learn, and is of no other use.

Made by `{command}` on {date}, on {machine}, in {minutes:.0f} minutes, seed {seed}.
Training saw the train scans only (UCI handwritten digits as shipped with scikit-learn).

## Figures on unseen test scans
{num_rows} rows of each grid, weights loaded in float32, 10 claims a row. `claims_at_start` is
the accuracy on claims directly after the prompt, `claims_at_end` after the reasoning. "Other image"
swaps images between rows, a control for text alone.

{table}

"Chance" gives each kind of question its most common answer. "Mixed groups" are the rows of which
{group_size} samples at temperature 1 are neither all correct nor all incorrect.

| grid | chance | mixed groups |
|---|---|---|
{spread}

## Losses of a rehearsal
{tower}Two steps of every part of the warm-up, response / verdict: {warm_up}.
`first_steps.json` holds them in full; rerun them to check that the recipe is unchanged.
"""


def model_card(figures: dict[str, Any], first: dict[str, list], **facts: Any) -> str:
    """Return the card as Markdown.

    Args:
        figures: `recipe.measure`'s result.
        first: `first_steps.first_losses`' result.
        facts: parameters, command, date, machine, minutes, seed and num_rows.
    """
    tower = ", ".join(f"{loss:.3f}" for loss in first["tower"])
    warm_up = (f"{loss['response']:.3f} / {loss['verdict']:.3f}" for loss in first["warm_up"])
    return _CARD.format(
        table=_table(figures),
        spread="\n".join(
            f"| {grid} | {of_grid['chance']:.3f} | {of_grid['mixed_groups']:.3f} |"
            for grid, of_grid in figures.items()
        ),
        group_size=GROUP_SIZE,
        tower=f"First steps of the tower: {tower}. " if tower else "",
        warm_up=", ".join(warm_up),
        **facts,
    )


def _table(figures: dict[str, Any]) -> str:
    columns = (*_SHARES, *_TOKENS)
    lines = [f"| grid | responses | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    for grid, of_grid in figures.items():
        for condition, found in of_grid["responses"].items():
            cells = [f"{found[column]:.3f}" for column in _SHARES]
            cells += [f"{found[column]:.0f}" for column in _TOKENS]
            lines.append(f"| {grid} | {condition} | {' | '.join(cells)} |")
    return "\n".join(lines)
