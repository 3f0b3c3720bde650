"""Small Qwen2.5-VL models that can read grids of digits, and the recipes that made them.

Their weights are part of the package (`model_dir`), so that the demo, the end-to-end tests and the
study start from a model that answers in the right format, is right now and then, and judges claims
better than chance.
"""

from pathlib import Path


def model_dir(name: str = "digits") -> Path:
    """Return the folder of a packaged model, for `from_pretrained` or `vllm.LLM`.

    Args:
        name: `digits`, which answers short questions; `long_digits`, the same, taught the long
            ones; or `hasty_digits`, the latter, half of whose lessons were solved without looking
            again. Their cards (README.md) have the figures.
    """
    return Path(__file__).parent / name
