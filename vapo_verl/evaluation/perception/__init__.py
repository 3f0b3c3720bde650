"""Perception: how much of the image a checkpoint uses along its responses to held-out rows.

`python -m vapo_verl.evaluation perception MODEL DATA --run RUN_DIR` writes
`RUN_DIR/diagnostics/perception/`: responses, the visual attention of each of their tokens, and the
model's predictions on the rows' claims at cuts along them, whether the response is correct or not.

- `rows.jsonl`: a line for each row:

      row, data_source, index, ground_truth, response, num_tokens, reasoning, finish, answer, right
                      as in :mod:`vapo_verl.evaluation.early_decision`
      format          float: the format reward of the response
      attention       list of float or null, one for each token of the response
      anchors         list, by rising position; the first ones are at 0, directly after the prompt:
        position      int: tokens of the response before the question
        claim         string
        label         bool: whether it is true
        answer        bool: true for yes
        correct       bool
        p_yes         float: normalised over yes and no
      probe_tokens    int: prompt tokens of all questions
      cached_tokens   int: of these, tokens found in the KV cache

- `settings.json`, `page.html`, and `summary.json`: see `perception_command.summarise`.
"""

from dataclasses import dataclass, field
from typing import Any

from vapo_verl.cli_options import check_bounds, cli
from vapo_verl.evaluation.probing.probe_options import QuestionOptions, claim_settings

COMMAND = "perception"


@dataclass(frozen=True, slots=True, kw_only=True)
class PerceptionOptions:
    """Options of the command."""

    num_cuts: int = field(default=20, metadata=cli(low=1))
    """K, at logical boundaries evenly spread over the reasoning; fewer where it has fewer."""
    claims_per_cut: int = field(default=1, metadata=cli(low=1))
    """Claims probed at each cut; the cuts of a response cycle through all claims of its row."""
    asked: QuestionOptions = field(default_factory=QuestionOptions)

    def __post_init__(self) -> None:
        check_bounds(self)

    def settings(self) -> dict[str, Any]:
        """Options that results depend on."""
        return claim_settings(self)
