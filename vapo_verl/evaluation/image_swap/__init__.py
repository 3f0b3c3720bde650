"""Image swap: does the image still matter to the rest of a response? A causal check of attention.

`python -m vapo_verl.evaluation image-swap MODEL DATA --run RUN_DIR` writes
`RUN_DIR/diagnostics/image-swap/`. At cuts along a response the image is exchanged, the response's
own tokens before the cut are kept, and the model continues greedily from there. Two exchanges:

- `swap`: another image of the data of the same size, so that all positions stay as they are;
- `blank`: the image's own mean colour all over.

The prefix is computed again with the exchanged image. Its tokens are those that the model wrote
with the original image; its keys and values are not. So this is an intervention on the input, not
on single attention weights.

- `rows.jsonl`: a line for each row:

      row, data_source, index, ground_truth, response, num_tokens, reasoning, finish, answer, right
                        as in :mod:`vapo_verl.evaluation.early_decision`
      attention         list of float or null, one for each token of the response
      swapped_with      int: number of the first row with the swapped image
      same_size         bool: false where it had to be resized
      claims            list, at the cuts, of claims probed with the original image:
        position, claim, label, answer, correct, p_yes
                        as in :mod:`vapo_verl.evaluation.perception`
      exchanges         {swap: .., blank: ..}, each with
        cuts            list, by rising target, of {target, position, answer, right}: grades of
                        the response continued from there
        claims          as above and in the same order, with the exchanged image
        kl              list of float, one for each token: KL divergence in nats of the next-token
                        distribution with the exchanged image from that with the original one,
                        both given the response's tokens before it. A lower bound: see
                        :func:`vapo_verl.evaluation.image_swap.swap_probe.divergence`
        logprob_drop    list of float, one for each token: how far its logprob falls, in nats

- `settings.json`, `page.html`, and `summary.json`: see `swap_command.summarise`.
"""

from dataclasses import dataclass, field
from typing import Any

from vapo_verl.cli_options import check_bounds, cli
from vapo_verl.evaluation.probing.probe_options import QuestionOptions, claim_settings

COMMAND = "image-swap"
EXCHANGES = ("swap", "blank")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSwapOptions:
    """Options of the command."""

    num_cuts: int = field(default=11, metadata=cli(low=2))
    """Cuts from 0 to 100 % of the reasoning."""
    claims_per_cut: int = field(default=1, metadata=cli(low=0))
    """Claims probed at each cut, with the original image and the exchanged ones; 0 for none."""
    asked: QuestionOptions = field(default_factory=QuestionOptions)

    def __post_init__(self) -> None:
        check_bounds(self)

    def settings(self) -> dict[str, Any]:
        """Options that results depend on."""
        return claim_settings(self)
