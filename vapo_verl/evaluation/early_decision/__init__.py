r"""Early decision: what a response's answer would be if its reasoning stopped earlier.

`python -m vapo_verl.evaluation early-decision MODEL DATA --run RUN_DIR` writes
`RUN_DIR/diagnostics/early-decision/`:

- `settings.json`: options of the run.
- `rows.jsonl`: a line for each row, in the order they were finished. A resumed run appends.

      row           int, its number in DATA, from 0
      data_source   string
      index         int or null: extra_info.index
      ground_truth  string
      response      string: the response as it was generated
      num_tokens    int: its tokens
      reasoning     [start, end]: tokens of the response before and up to the end of its reasoning
      finish        "stop" or "length"
      answer        string or null: the answer the response itself gives
      right         bool: whether that is the ground truth
      cuts          list, by rising target, one for each of the 21 (--num-cuts) fractions:
          target    float in 0..1: the requested fraction of the reasoning
          position  int: tokens of the response before the cut
          answer    string or null: the answer forced after the cut
          right     bool

- `summary.json`: :func:`summarise` of the rows; `page.html`: the same as a figure.

At target 0 the model answers at once; at 1 the forced answer follows its complete reasoning.
This module and what it exports import neither vllm nor torch.
"""

from dataclasses import dataclass, field

from vapo_verl.cli_options import check_bounds, cli
from vapo_verl.evaluation.early_decision.decision_summary import (
    COMMAND,
    Cut,
    EarlyDecision,
    EarlyRow,
    accuracy_by_cut,
    drop_from_peak,
    load_early_decision,
    peak,
    recoverable_any,
    recoverable_single,
    summarise,
)
from vapo_verl.reward import BOX, THINK_END

__all__ = [
    "COMMAND",
    "Cut",
    "EarlyDecision",
    "EarlyRow",
    "accuracy_by_cut",
    "drop_from_peak",
    "load_early_decision",
    "peak",
    "recoverable_any",
    "recoverable_single",
    "summarise",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyOptions:
    """How an answer is forced."""

    num_cuts: int = field(default=21, metadata=cli(low=2))
    """Cuts, evenly from 0 to 100 % of the reasoning."""
    time_up: str = "\nTime is up. I have to answer now.\n"
    """Text after a cut."""
    end_of_thinking: str = THINK_END
    """Closing tag."""
    answer_start: str = f"\n{BOX}{{"
    """Text that begins the answer, so that few tokens are enough."""
    answer_tokens: int = field(default=32, metadata=cli(low=1))
    """Most tokens of a forced answer."""

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def suffix(self) -> str:
        return self.time_up + self.end_of_thinking + self.answer_start
