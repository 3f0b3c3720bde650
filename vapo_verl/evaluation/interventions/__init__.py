"""Interventions: do a second look at the image, or a reminder to look, help a response?

`python -m vapo_verl.evaluation interventions MODEL DATA --run RUN_DIR` writes
`RUN_DIR/diagnostics/interventions/`. Every row is answered three times:

- `plain`: without a change;
- `replay`: at 4 logical boundaries a user turn shows the image again, down-sampled;
- `focus`: at the same positions a sentence is inserted into the model's own text.

The first insertion is at the boundary of the plain response nearest to a fifth of its reasoning.
Each later one follows about as many tokens after the one before, at a boundary of the new response.
Insertions past the end of the reasoning are left out.

- `rows.jsonl`: a line for each row:

      row, data_source, index, ground_truth   as in :mod:`vapo_verl.evaluation.early_decision`
      responses      {plain: .., replay: .., focus: ..}, each with
        response     string: what the model wrote, insertions of `focus` in place
        num_tokens   int: tokens the model wrote
        insertions   list of int: tokens it had written before each insertion
        finish       "stop" or "length"
        answer       string or null
        right        bool
        attention    list of float or null, one for each token it wrote; after a replay it counts
                     the tokens of all images

- `settings.json`, `page.html`, and `summary.json`: see `intervention_command.summarise`.
"""

from dataclasses import dataclass, field

from vapo_verl.cli_options import OptionError, check_bounds, cli

COMMAND = "interventions"
PLAIN = "plain"
INTERVENTIONS = ("replay", "focus")


@dataclass(frozen=True, slots=True, kw_only=True)
class InterventionOptions:
    """Options of the command."""

    num_insertions: int = field(default=4, metadata=cli(low=1))
    """Insertions in one response."""
    replay_scale: float = 0.5
    """Scale of both sides of the replayed image; the image processor has its own lower limit."""
    replay_text: str = "Here is the image again. Go on."
    """Text of the user turn, after the image."""
    focus_text: str = " Let me look at the image again."
    """Text inserted into the model's text."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not 0 < self.replay_scale <= 1:
            raise OptionError(f"--replay-scale {self.replay_scale}: give more than 0, at most 1")
