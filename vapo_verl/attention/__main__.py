"""Arguments for `vllm serve`:

vllm serve MODEL $(python -m vapo_verl.attention)
"""

import argparse
import json

from vapo_verl.attention import engine_args
from vapo_verl.config import DEFAULT_MAX_SPANS


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m vapo_verl.attention",
        description="Print the arguments that make `vllm serve` export visual attention: "
        "vllm serve MODEL $(python -m vapo_verl.attention)",
    )
    parser.add_argument(
        "--layers", nargs="+", metavar="LAYER", help="layer indices, or all; if unset 1 in 8"
    )
    parser.add_argument("--per-layer", action="store_true", help="one value per layer")
    parser.add_argument(
        "--max-spans",
        type=int,
        default=DEFAULT_MAX_SPANS,
        metavar="N",
        help=f"images or runs of visual tokens a prompt may have; default {DEFAULT_MAX_SPANS}",
    )
    parser.add_argument(
        "--always", action="store_true", help="for every request, not only for those that ask"
    )
    options = parser.parse_args()
    layers = options.layers
    try:
        if layers is not None:
            layers = "all" if layers == ["all"] else [int(layer) for layer in layers]
        arguments = engine_args(
            layers,
            options.per_layer,
            on_request=not options.always,
            max_spans=options.max_spans,
        )
    except ValueError as error:
        parser.error(str(error))
    words = []
    for name, value in arguments.items():
        # No spaces: the shell splits the output of $( ) at them, and keeps the quotes.
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        words += [f"--{name.replace('_', '-')}", text]
    print(*words)


if __name__ == "__main__":
    main()
